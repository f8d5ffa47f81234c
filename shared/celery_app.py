"""The Celery application that web tier, replicas and Flower share. Holds no task code."""

from celery import Celery

from shared import broker

broker.register()
app = Celery("llmis")
app.config_from_object("celeryconfig")
