"""Metrics for Prometheus: the OpenTelemetry instruments of the process, as a page to scrape.

Nothing is measured anew. The process's meter provider gets a reader that fills a registry of
``prometheus_client``, and the page is what that registry holds: the library's metrics, and
whatever else of the process is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from forze.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


def attach_metrics(
    app: Starlette, path: str = "/metrics", *, registry: CollectorRegistry | None = None
) -> None:
    """Serve the process's metrics at ``path``, in the format that the scraper asks for.

    Where no meter provider is set for the process yet, one is that exports here; one of your
    own needs a ``PrometheusMetricReader``. ``registry`` is one that a reader of yours fills; None
    is ``prometheus_client.REGISTRY``.
    The route is ahead of the application's own, and neither its dependencies nor its OpenAPI
    document know of it. Raises ``ConfigurationError`` where ``forze[prometheus]`` is missing.
    """
    try:
        from opentelemetry import metrics
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.sdk.metrics import MeterProvider
        from prometheus_client import REGISTRY
        from prometheus_client.exposition import choose_encoder
    except ImportError as error:
        raise ConfigurationError(
            f"attach_metrics needs {error.name}; install forze[prometheus]", name="prometheus"
        ) from error
    if registry is None and not isinstance(metrics.get_meter_provider(), MeterProvider):
        metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    shown = REGISTRY if registry is None else registry

    async def page(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        content = await run_in_threadpool(encode, shown)
        return Response(content, headers={"Content-Type": media_type, "Cache-Control": "no-store"})

    app.router.routes.insert(0, Route(path, page, name="metrics"))
