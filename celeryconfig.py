"""Celery's configuration. Why each value: docs/decisions/0003-celery-settings.md."""

from shared import names as _names
from shared.settings import load as _settings

_s = _settings.load()

broker_url = _s.redis_url or "redis://127.0.0.1:6379/0"
broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # Redis may be away for as long as it likes
broker_pool_limit = 20
broker_pool_acquire_timeout = _s.redis_timeout_s
broker_channel_error_retry = True  # a Redis that refuses writes must not end a worker
broker_transport_options = {
    "priority_steps": list(_names.PRIORITY_STEPS),
    "queue_order_strategy": "priority",
    "socket_timeout": _s.redis_timeout_s,
    "socket_connect_timeout": _s.redis_timeout_s,
    # The messages that a worker has are not noted in Redis: four writes a message, and the jobs
    # of a lost worker are queued again without them (docs/decisions/0004-lost-messages.md).
    "ack_emulation": False,
    "polling_interval": 0.1,
}

task_serializer = "json"
accept_content = ["json"]
result_backend = None
task_ignore_result = True
task_acks_late = True
task_reject_on_worker_lost = True
task_default_queue = "llmis.default"
task_default_priority = 3
task_create_missing_queues = True

worker_prefetch_multiplier = 1
worker_consumer = "worker.celery_consumer:Consumer"
worker_send_task_events = True  # while there is a listener: worker/celery_consumer.py
worker_hijack_root_logger = False
worker_redirect_stdouts = False
# A broken broker connection delivers running jobs again. The second copy finds the job's claim
# and ends, the first goes on: nothing has to be cancelled.
worker_cancel_long_running_tasks_on_connection_loss = False
