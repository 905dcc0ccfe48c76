"""One request to a cached handler: its key, its response, and the header fields it goes with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Set
from copy import copy
from functools import lru_cache
from time import time
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.requests import HTTPConnection
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from forze.application.execution import ExecutionContext
from forze.application.integrations.cached.canonical import canonical
from forze.application.integrations.cached.ports import BoundFunction, Call
from forze.application.integrations.cached.values import Unshared
from forze.application.integrations.document.codec import repr_text, schema_text
from forze.errors import ConfigurationError, ValidationError
from forze_fastapi.documents.etag import parse_tags
from forze_fastapi.idempotency.answers import call, response_of, route_of
from forze_fastapi.response_cache.seen import Seen, seen_of, stripped
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


class Handling(Call[Stored]):
    """One call of the handler."""

    __slots__ = ("began", "response")

    def __init__(self, key: str, tags: tuple[str, ...], run: Any, **whose: str | None) -> None:
        super().__init__(key, tags, run, **whose)
        self.began = time()
        self.response: Response | None = None
        """What the handler answered; None where it did not run for this call."""


class Exchange:
    """One request. ``injected`` is the response that dependencies set headers on."""

    def __init__(
        self, cached: Cached, ctx: ExecutionContext, request: Request, injected: Response
    ) -> None:
        self._cached = cached
        self._ctx = ctx
        self._request = request
        self._injected = injected
        self._seen: Seen | None = None

    async def run(self, values: dict[str, Any]) -> Any:
        """The response: kept, shared with whoever asks meanwhile, or this request's own."""
        cached, request = self._cached, self._request
        if request.method not in ("GET", "HEAD"):
            return await self._ran(values, shared=False)
        asked = asks_for(request.headers.getlist("cache-control")) if cached.obey else None
        if asked == "no-store":
            return _past(await self._ran(values, shared=False), fwd="request")
        if any(isinstance(each, HTTPConnection) for each in values.values()):
            self._seen = seen_of(request, cached.vary)
        bound = self._ctx.functions.of(cached)
        handling = self._handling(bound, values)
        try:
            if asked == "no-cache":
                await bound.invalidate(handling)
            stored = await bound.get(handling)
        except Unshared:
            assert handling.response is not None
            return self._with_its_own(_past(handling.response, fwd="uri-miss"))
        return self._given(stored, handling)

    # -- the call --------------------------------------------------------------

    def _handling(self, bound: BoundFunction[Stored], values: Mapping[str, Any]) -> Handling:
        cached = self._cached
        tenant, principal = bound.tenant(), bound.principal()
        try:
            digest = cached.arguments.digest(values, self._beside(tenant, principal))
            tags = cached.arguments.tags(values)
        except ValidationError as error:  # the route is wrong, not the request
            raise ConfigurationError(str(error), name=cached.name) from error

        async def run() -> Stored:
            response = made.response = await self._ran(dict(values), shared=True)
            stored = stored_of(response, cached.kept, cached.statuses)
            if stored is None:
                raise Unshared(made)
            return stored

        made = Handling(f"{cached.label}:{digest}", tags, run, tenant=tenant, principal=principal)
        return made

    def _beside(self, tenant: str | None, principal: str | None) -> bytes:
        """What the response depends on besides the arguments."""
        cached, request = self._cached, self._request
        beside = self._shape() + _caller(cached.name, cached.version, tenant, principal)
        if cached.vary or self._seen is not None:
            chosen = [request.headers.getlist(name) for name in cached.vary]
            beside += canonical((chosen, self._seen))
        return beside

    def _shape(self) -> bytes:
        """How this route turns what the handler returns into a body."""
        route = route_of(self._request)
        known = self._cached.shapes
        models = id(route.response_model), id(route.response_class)
        at = (route.path_format, route.status_code, *models)
        if at not in known:
            known[at] = canonical(
                (
                    route.path_format,
                    route.status_code,
                    _schema(route.response_model),
                    _class(route.response_class),
                    _chosen(route.response_model_include),
                    _chosen(route.response_model_exclude),
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
            for name, value in values.items():
                if isinstance(value, Response):
                    values[name] = injected
                elif isinstance(value, HTTPConnection) and self._seen is not None:
                    values[name] = stripped(value, self._seen)
        returned = await call(handler, **values)
        is_async = inspect.iscoroutinefunction(handler)
        return await response_of(returned, route_of(self._request), injected, is_coroutine=is_async)

    # -- the response ----------------------------------------------------------

    def _given(self, stored: Stored, handling: Handling) -> Response:
        cached, now, its_own = self._cached, time(), self._injected.headers
        remaining = stored.remaining(cached.cache.ttl.total_seconds(), now)
        fields = stored.fields()
        if "cache-control" not in fields and "cache-control" not in its_own:
            fields["cache-control"] = self._control(handling, remaining)
        if (vary := varying(fields.get("vary"), its_own.get("vary"), *cached.vary)) is not None:
            fields["vary"] = vary
        if handling.response is not None:
            fields["cache-status"] = cache_status(fwd="uri-miss", stored=True)
        elif stored.at >= handling.began:
            fields["cache-status"] = cache_status(fwd="uri-miss", collapsed=True)
        else:
            fields["cache-status"] = cache_status(hit=True, ttl=int(remaining))
        response = self._rendered(stored, fields)
        if handling.response is not None:
            response.background = handling.response.background
        return response

    def _control(self, handling: Handling, remaining: float) -> str:
        """``Cache-Control`` of a handler that says none.

        Whoever comes next in the same browser may be somebody else: what may be for this caller
        is not reused there without asking us.
        """
        cached, headers = self._cached, self._request.headers
        somebodys = handling.principal is not None or handling.tenant is not None
        if cached.public and not somebodys:
            return cache_control(remaining, public=True, most=cached.max_age)
        known = somebodys or "authorization" in headers or "cookie" in headers
        most = 0.0 if known and cached.max_age is None else cached.max_age
        return cache_control(remaining, public=False, most=most)

    def _rendered(self, stored: Stored, fields: dict[str, str]) -> Response:
        lines = self._request.headers.getlist("if-none-match")
        condition = parse_tags(lines) if lines and 200 <= stored.status < 300 else None
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


@lru_cache(maxsize=1_024, typed=True)
def _caller(name: str, version: str | int, tenant: str | None, principal: str | None) -> bytes:
    """The part of a key that comes again, remembered. What a request says is not: it may be large,
    or a secret."""
    return canonical((name, version, tenant, principal))


def _past(response: Response, *, fwd: str) -> Response:
    """``response`` in a copy: the handler may give the same object to everybody."""
    given = copy(response)
    given.__dict__.pop("_headers", None)
    given.raw_headers = [*response.raw_headers]
    given.headers["cache-status"] = cache_status(fwd=fwd)
    return given


def _blank() -> Response:
    """A response to set headers on, as FastAPI gives one to handlers."""
    response = Response()
    del response.headers["content-length"]
    response.status_code = None  # type: ignore[assignment] # FastAPI's own "not set"
    return response


def _class(response_class: Any) -> str:
    """A route's class by its name; FastAPI wraps the one that nobody chose."""
    if isinstance(response_class, DefaultPlaceholder):
        response_class = response_class.value
    return f"{response_class.__module__}.{response_class.__qualname__}"


def _chosen(fields: Any) -> Any:
    """Names of fields, nested or not, without the order in which this process has them."""
    if isinstance(fields, Mapping):
        return {name: _chosen(each) for name, each in fields.items()}
    if isinstance(fields, Set):
        return {*fields}
    return True if fields is Ellipsis else fields


def _schema(model: Any) -> str:
    try:
        return schema_text(TypeAdapter(model).json_schema(mode="serialization"))
    except (PydanticUserError, TypeError):
        return repr_text(model)
