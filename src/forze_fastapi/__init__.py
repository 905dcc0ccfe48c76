"""forze in a FastAPI application: lifespan, document endpoints, idempotency, limits, caching."""

try:
    import fastapi as _fastapi  # noqa: F401
    import http_sf as _http_sf  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"forze_fastapi needs {error.name}, of an extra: pip install 'forze[fastapi]'",
        name=error.name,
    ) from error

from forze_fastapi.binding import TenantHeader, bind_request
from forze_fastapi.body_limit import BodyLimit
from forze_fastapi.console import console, open_to_everyone
from forze_fastapi.context import ContextDep, context_of
from forze_fastapi.documents import attach_document_endpoints
from forze_fastapi.errors import (
    HTTPProblem,
    Problem,
    problem_response,
    problem_responses,
    register_exception_handlers,
)
from forze_fastapi.health import HealthProbe, attach_health
from forze_fastapi.idempotency import IdempotencyFeature
from forze_fastapi.isolation import FreshRequests
from forze_fastapi.lifespan import runtime_lifespan
from forze_fastapi.metrics import attach_metrics
from forze_fastapi.rate_limit import RateLimit, caller
from forze_fastapi.response_cache import cached_response
from forze_fastapi.response_headers import ResponseHeaders

__all__ = [
    "BodyLimit",
    "ContextDep",
    "FreshRequests",
    "HTTPProblem",
    "HealthProbe",
    "IdempotencyFeature",
    "Problem",
    "RateLimit",
    "ResponseHeaders",
    "TenantHeader",
    "attach_document_endpoints",
    "attach_health",
    "attach_metrics",
    "bind_request",
    "cached_response",
    "caller",
    "console",
    "context_of",
    "open_to_everyone",
    "problem_response",
    "problem_responses",
    "register_exception_handlers",
    "runtime_lifespan",
]
