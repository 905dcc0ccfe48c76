"""Spans: what a cache does beside answering, in traces. A hit makes none.

A flight and a refresh belong to no request: they run apart, and go on when whoever caused
them is gone. So their spans are roots that *link* to the span of the first caller, and what
the source's own instrumentation makes is inside them. A write waits for its invalidation:
that span is a child of the writer's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from opentelemetry import trace

from forze.application.integrations.document.flight import Flight
from forze.application.integrations.document.instruments import DOCUMENT
from forze.errors import NotFoundError

T = TypeVar("T")

_log = logging.getLogger("forze")

OUTCOME: Final = "forze.outcome"
KEYS: Final = "forze.cache.keys"


class Tracing:
    """Makes spans with the tracer of one provider."""

    def __init__(self, provider: trace.TracerProvider | None) -> None:
        self._tracer = trace.get_tracer("forze", tracer_provider=provider)

    def of(self, document: str) -> Spans:
        """The spans of one document kind."""
        return Spans(self._tracer, document)


class Spans:
    """The spans of one document kind."""

    __slots__ = ("_document", "_tracer")

    def __init__(self, tracer: trace.Tracer, document: str) -> None:
        self._tracer = tracer
        self._document = document

    @property
    def unheard(self) -> bool:
        """Whether no provider of traces is there, so that spans would come to nothing."""
        return isinstance(self._tracer, trace.ProxyTracer) and isinstance(
            trace.get_tracer_provider(), trace.ProxyTracerProvider
        )

    def caller(self) -> trace.SpanContext | None:
        """The span of the task that is running, for what it causes to link to."""
        context = trace.get_current_span().get_span_context()
        return context if context.is_valid else None

    async def load(self, flight: Flight[T], arriving: Awaitable[T]) -> T:
        """Await what a flight brings, in a span that ends with the flight's outcome."""
        with self._span("forze.cache.load", flight.caller) as span:
            found = await arriving
            span.set_attribute(OUTCOME, flight.outcome)
            return found

    async def refresh(
        self, caller: trace.SpanContext | None, replacing: Awaitable[tuple[T, bool]]
    ) -> tuple[T, bool]:
        """Await a refresh: what was loaded, and whether it was stored."""
        with self._span("forze.cache.refresh", caller) as span:
            found, stored = await replacing
            span.set_attribute(OUTCOME, "filled" if stored else "refused")
            return found, stored

    async def invalidate(self, keys: int, telling: Awaitable[bool]) -> bool:
        """Await the end of a write: whether the cache knows of it. No ``keys``: all of them."""
        with self._span("forze.cache.invalidate", None) as span:
            if keys:
                span.set_attribute(KEYS, keys)
            told = await telling
            span.set_attribute(OUTCOME, "told" if told else "owed")
            return told

    @contextmanager
    def _span(self, name: str, caller: trace.SpanContext | None) -> Iterator[trace.Span]:
        span = self._started(name, caller)
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except NotFoundError:
                span.set_attribute(OUTCOME, "absent")
                raise
            except asyncio.CancelledError:
                span.set_attribute(OUTCOME, "cancelled")
                raise
            except BaseException as error:
                span.set_attributes({OUTCOME: "failed", "error.type": type(error).__qualname__})
                span.set_status(trace.StatusCode.ERROR, str(error))
                raise
            finally:
                _ended(span)

    def _started(self, name: str, caller: trace.SpanContext | None) -> trace.Span:
        """A sampler or processor that fails costs a span, never a read or an invalidation."""
        links = () if caller is None else (trace.Link(caller),)
        try:
            return self._tracer.start_span(name, attributes={DOCUMENT: self._document}, links=links)
        except Exception:
            _log.exception("the span %s could not be started", name)
            return trace.INVALID_SPAN


def _ended(span: trace.Span) -> None:
    try:
        span.end()
    except Exception:
        _log.exception("a span could not be ended")
