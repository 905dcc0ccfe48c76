"""Work for Celery. Tasks are plain functions, so they use the sync twins; the cache is the same."""

import os
import time

from app.core.celery import celery_app
from app.core.redis import redis_manager


@celery_app.task
def process_data(key: str) -> str:
    """The result for `key`, computed where nobody has in the last hour."""
    cached = redis_manager.get_sync(key)
    if cached is not None:
        return cached
    result = heavy_processing()
    redis_manager.set_sync(key, result, ex=3600)
    return result


def heavy_processing() -> str:
    """Says where and when it ran."""
    return f"computed by process {os.getpid()} at {time.time():.3f}"
