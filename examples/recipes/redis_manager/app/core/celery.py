"""The Celery application: `celery -A app.core.celery worker`."""

import os
from typing import Any

from celery import Celery
from celery.signals import worker_process_shutdown

from app.core.redis import redis_manager

_URL = os.environ["CELERY_BROKER_URL"]

celery_app = Celery("redis_manager", broker=_URL, backend=_URL, include=["app.tasks"])


@worker_process_shutdown.connect
def close_redis(**_: Any) -> None:
    """Each process of the worker has connections of its own, opened by its first task."""
    redis_manager.close_sync()
