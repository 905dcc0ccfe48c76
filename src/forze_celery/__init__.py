"""forze in Celery workers: sync tasks reach the async ports, for whom they were published."""

try:
    import celery as _celery  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"forze_celery needs {error.name}, of an extra: pip install 'forze[celery]'",
        name=error.name,
    ) from error

from forze_celery.attaching import attach_portal

__all__ = ["attach_portal"]
