"""One request to a cached handler: its key, its response, and the header fields it goes with."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from fastapi import Request, Response
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError
from starlette.concurrency import run_in_threadpool

from forze.application.execution import ExecutionContext
from forze.application.integrations.cached.canonical import canonical
from forze.application.integrations.cached.ports import BoundFunction, Call
from forze.errors import ConfigurationError, ValidationError
from forze_fastapi.documents.etag import parse_tags
from forze_fastapi.idempotency.answers import response_of, route_of
from forze_fastapi.response_cache.seen import stripped
from forze_fastapi.response_cache.stored import (
    NOT_MODIFIED,
    Stored,
    asks_for,
    cache_control,
    cache_status,
    stored_of,
    varying,
)

if TYPE_CHECKING:
    from forze_fastapi.response_cache.feature import Cached


class _Unshared(Exception):
    """What the handler answered is for the caller it was made for, and nobody else."""

    def __init__(self, call: Handling, response: Response) -> None:
        super().__init__("a response that is not kept")
        self.call = call
        self.response = response


class Handling(Call[Stored]):
    """One call of the handler."""

    __slots__ = ("began", "ran")

    def __init__(self, key: str, tags: tuple[str, ...], run: Any, **whose: str | None) -> None:
        super().__init__(key, tags, run, **whose)
        self.began = time()
        self.ran = False


class Exchange:
    """One request. ``injected`` is the response that dependencies set headers on."""

    def __init__(
        self, cached: Cached, ctx: ExecutionContext, request: Request, injected: Response
    ) -> None:
        self._cached = cached
        self._ctx = ctx
        self._request = request
        self._injected = injected

    async def run(self, values: dict[str, Any]) -> Any:
        """The response: kept, shared with whoever asks meanwhile, or this request's own."""
        cached, request = self._cached, self._request
        if request.method not in ("GET", "HEAD"):
            return await self._ran(values, shared=False)
        asked = asks_for(request.headers.getlist("cache-control")) if cached.obey else None
        if asked == "no-store":
            return _past(await self._ran(values, shared=False), fwd="request")
        bound = self._ctx.functions.of(cached)
        call = self._call(bound, values)
        try:
            if asked == "no-cache":
                await bound.invalidate(call)
            stored = await bound.get(call)
        except _Unshared as error:
            if error.call is call:
                return self._with_its_own(_past(error.response, fwd="uri-miss"))
            # Nor was it made for us.
            return _past(await self._ran(values, shared=False), fwd="uri-miss")
        return self._given(stored, call)

    # -- the call --------------------------------------------------------------

    def _call(self, bound: BoundFunction[Stored], values: Mapping[str, Any]) -> Handling:
        cached = self._cached
        tenant, principal = bound.tenant(), bound.principal()
        try:
            digest = cached.arguments.digest(values, self._beside(tenant, principal))
            tags = cached.arguments.tags(values)
        except ValidationError as error:  # the route is wrong, not the request
            raise ConfigurationError(str(error), name=cached.name) from error

        async def run() -> Stored:
            call.ran = True
            response = await self._ran(dict(values), shared=True)
            stored = stored_of(response, cached.kept, cached.statuses)
            if stored is None:
                raise _Unshared(call, response)
            return stored

        call = Handling(f"{cached.label}:{digest}", tags, run, tenant=tenant, principal=principal)
        return call

    def _beside(self, tenant: str | None, principal: str | None) -> bytes:
        """What the response depends on besides the arguments."""
        cached, request = self._cached, self._request
        chosen = [request.headers.getlist(name) for name in cached.vary]
        seen = (
            (request.url.path, sorted(parse_qsl(request.url.query, keep_blank_values=True)))
            if cached.takes_request
            else None
        )
        return self._shape() + canonical(
            (cached.name, tenant, principal, chosen, seen, cached.version)
        )

    def _shape(self) -> bytes:
        """How this route turns what the handler returns into a body."""
        route = route_of(self._request)
        known = self._cached.shapes
        at = (route.path_format, id(route.response_model))
        if at not in known:
            known[at] = canonical(
                (
                    route.path_format,
                    route.status_code,
                    _schema(route.response_model),
                    repr(route.response_class),
                    repr((route.response_model_include, route.response_model_exclude)),
                    route.response_model_by_alias,
                    route.response_model_exclude_unset,
                    route.response_model_exclude_defaults,
                    route.response_model_exclude_none,
                )
            )
        return known[at]

    async def _ran(self, values: dict[str, Any], *, shared: bool) -> Response:
        """The handler's response: where it is shared, made of what is part of the key alone."""
        handler, injected = self._cached.handler, self._injected
        if shared:
            injected = _blank()
            for name, kind in self._cached.takes.items():
                values[name] = (
                    injected if kind is Response else stripped(self._request, self._cached.vary)
                )
        is_async = inspect.iscoroutinefunction(handler)
        returned = await (handler(**values) if is_async else run_in_threadpool(handler, **values))
        return await response_of(returned, route_of(self._request), injected, is_coroutine=is_async)

    # -- the response ----------------------------------------------------------

    def _given(self, stored: Stored, call: Handling) -> Response:
        cached, now = self._cached, time()
        life = cached.cache.ttl.total_seconds()
        fields = stored.fields()
        if "cache-control" not in fields:
            fields["cache-control"] = cache_control(
                life,
                stored.at,
                now,
                public=cached.public and call.principal is None,
                most=cached.max_age,
            )
        if (vary := varying(fields.get("vary"), *cached.vary)) is not None:
            fields["vary"] = vary
        remaining = max(0, int(stored.at + life - now))
        if call.ran:
            fields["cache-status"] = cache_status(fwd="uri-miss", stored=True)
        elif stored.at >= call.began:
            fields["cache-status"] = cache_status(fwd="uri-miss", collapsed=True)
        else:
            fields["cache-status"] = cache_status(hit=True, ttl=remaining)
        return self._rendered(stored, fields)

    def _rendered(self, stored: Stored, fields: dict[str, str]) -> Response:
        lines = self._request.headers.getlist("if-none-match")
        condition = parse_tags(lines) if lines else None
        if condition is not None and condition.weakly(fields["etag"]):
            response = Response(status_code=304)
            fields = {
                name: value
                for name, value in fields.items()
                if name in NOT_MODIFIED or name == "cache-status"
            }
        else:
            response = Response(stored.body, stored.status)
        for name, value in fields.items():
            response.raw_headers.append((name.encode("latin-1"), value.encode("latin-1")))
        return self._with_its_own(response)

    def _with_its_own(self, response: Response) -> Response:
        """What dependencies have set is of this request, and goes along."""
        kept = {name.lower() for name, _ in response.raw_headers}
        response.raw_headers.extend(
            (name, value)
            for name, value in self._injected.raw_headers
            if name.lower() not in kept or (name.lower() == b"set-cookie")
        )
        return response


def _past(response: Response, *, fwd: str) -> Response:
    response.headers["cache-status"] = cache_status(fwd=fwd)
    return response


def _blank() -> Response:
    """A response to set headers on, as FastAPI gives one to handlers."""
    response = Response()
    del response.headers["content-length"]
    response.status_code = None  # type: ignore[assignment] # FastAPI's own "not set"
    return response


def _schema(model: Any) -> str:
    try:
        return json.dumps(TypeAdapter(model).json_schema(mode="serialization"), sort_keys=True)
    except (PydanticUserError, TypeError):
        return repr(model)
