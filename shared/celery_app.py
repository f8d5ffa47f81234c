"""The Celery application of web tier, replicas, agents and Flower. It holds no task code."""

from celery import Celery

from shared.redis import celery_transport

celery_transport.register()
app = Celery("llmis")
app.config_from_object("celeryconfig")
