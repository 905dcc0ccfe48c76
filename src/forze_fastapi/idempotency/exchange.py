"""One request under an idempotency key, from its claim to its answer.

The claim is taken when every dependency has run, so that tenant and principal are bound; the
answer is kept as it is sent, before anything of it is, so that nobody sees an answer that could
be another one the next time. How the request ends any other way, the key is free.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from forze.application.contracts.idempotency import (
    IdempotencyClaim,
    IdempotencySnapshot,
    IdempotencySpec,
)
from forze.application.execution import ExecutionContext
from forze.errors import (
    BackendError,
    BackendUnavailable,
    IdempotencyInProgress,
    IdempotencyMismatch,
    TenantRequired,
)
from forze_fastapi.errors import HTTPProblem, problem_response
from forze_fastapi.idempotency.answers import (
    call,
    is_answered,
    keep_exceptions,
    replay_of,
    response_of,
    route_of,
    snapshot_of,
)
from forze_fastapi.idempotency.fingerprint import fingerprint
from forze_fastapi.idempotency.header import NAME, Malformed, key_of

_REFUSALS = (
    HTTPProblem,
    IdempotencyInProgress,
    IdempotencyMismatch,
    BackendUnavailable,
    TenantRequired,
)
"""What is answered without running the handler."""

_log = logging.getLogger("forze")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What one feature asks for."""

    spec: IdempotencySpec
    operation: str | None
    max_body_bytes: int | None
    max_request_bytes: int | None


class Exchange:
    """One request to a handler. ``injected`` is the response that dependencies set headers on."""

    def __init__(
        self, terms: Terms, ctx: ExecutionContext, request: Request, injected: Response
    ) -> None:
        self._terms = terms
        self._ctx = ctx
        self._request = request
        self._injected = injected
        self._claim: IdempotencyClaim | None = None
        self._stands = False
        self._block = AsyncExitStack()

    async def run(self, handler: Callable[..., Any], values: dict[str, Any]) -> Any:
        """What the handler returns, its answer from another time, or a problem."""
        if NAME not in self._request.headers:
            return await call(handler, **values)
        try:
            replay = await self._begin(key_from(self._request))
        except _REFUSALS as error:
            return problem_response(error, self._request)
        if replay is not None:
            return replay_of(replay, self._injected)
        keep_exceptions(self._request, self._raised)
        response = await response_of(
            await call(handler, **values),
            route_of(self._request),
            self._injected,
            is_coroutine=inspect.iscoroutinefunction(handler),
        )
        return _Answer(response, self)

    async def finish(self, response: Response) -> None:
        """``response`` is the answer: keep it, or free the key, unless it is yet to stream."""
        claim, self._claim = self._claim, None
        snapshot = None if claim is None else snapshot_of(response)
        if claim is None or snapshot is None:
            return
        if self._is_kept(snapshot):
            await claim.complete(snapshot, stands=self._stands)
        else:
            await self.close()

    async def close(self) -> None:
        """The request is over: the key is free unless its answer was kept."""
        self._claim = None
        await self._block.aclose()

    async def leave(self, error: BaseException | None = None) -> None:
        """The dependencies are left, by ``error`` or because all went well."""
        task = asyncio.current_task()
        if task is None or self._claim is None or not self._is_to_be_answered(error):
            await self.close()
            return
        # Neither an exception handler nor what sends the answer is sure to get to its end.
        task.add_done_callback(
            lambda _: self._ctx.spawn(self.close(), name="forze-idempotency-close")
        )

    async def _begin(self, key: str) -> IdempotencySnapshot | None:
        request, route = self._request, route_of(self._request)
        same = await fingerprint(request, route.body_field, self._terms.max_request_bytes)
        path = _mounted_at(request.scope) + route.path_format
        operation = self._terms.operation or f"{request.method}:{path}"
        port = self._ctx.idempotency(self._terms.spec)
        claim = await self._block.enter_async_context(port.claim(operation, key, same))
        if claim.replay is None:
            request.state.idempotency = self._claim = claim
        return claim.replay

    def _is_to_be_answered(self, error: BaseException | None) -> bool:
        """Whether an answer is still to come that may be kept.

        FastAPI below 0.118 leaves the dependencies before it sends what the handler returned.
        """
        if error is None:
            return True
        may_be_kept = bool(self._terms.spec.store) or _stands(error)
        return may_be_kept and is_answered(self._request, error)

    async def _raised(self, response: Response, error: Exception) -> Response:
        """The answer to an exception is kept if the spec names its status, and where the change
        was made all the same: run again, it would be made twice."""
        self._stands = _stands(error)
        if self._stands or response.status_code in self._terms.spec.store:
            return _Answer(response, self)
        await self.close()
        return response

    def _is_kept(self, snapshot: IdempotencySnapshot) -> bool:
        limit = self._terms.max_body_bytes
        if limit is None or len(snapshot.body) <= limit:
            return True
        _log.warning(
            "idempotency %r: the answer to %s %s has %d bytes, more than max_body_bytes (%d): it "
            "is not kept, and the request would run again under the same key",
            self._terms.spec.name,
            self._request.method,
            self._request.url.path,
            len(snapshot.body),
            limit,
        )
        return False


class _Answer(Response):
    """A response that is kept before it is sent."""

    def __init__(self, inner: Response, exchange: Exchange) -> None:
        self.inner, self.exchange = inner, exchange
        self.status_code, self.background = inner.status_code, inner.background
        self.raw_headers = inner.raw_headers
        if hasattr(inner, "body"):
            self.body = inner.body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Keep it, then send it; the key of one that streams is free when it has ended."""
        self.inner.status_code, self.inner.background = self.status_code, self.background
        await self.exchange.finish(self.inner)
        try:
            await self.inner(scope, receive, send)
        finally:
            await self.exchange.close()


def _stands(error: BaseException) -> bool:
    return isinstance(error, BackendError) and error.committed


def key_from(request: Request) -> str:
    """The key of ``request``; raises an ``HTTPProblem`` where it has none that can be one."""
    try:
        return key_of(request.headers.getlist(NAME))
    except Malformed as error:
        title = "The idempotency key cannot be accepted"
        raise HTTPProblem(400, "idempotency-key", str(error), title=title) from None


def _mounted_at(scope: Scope) -> str:
    """The path at which the application that serves a request is mounted in another."""
    root: str = scope.get("root_path", "")
    return root.removeprefix(scope.get("app_root_path", root))
