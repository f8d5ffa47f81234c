"""The Celery application that web tier, replicas and Flower share. Holds no task code."""

from celery import Celery

app = Celery("llmis")
app.config_from_object("celeryconfig")
