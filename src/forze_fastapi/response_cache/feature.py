"""``@cached_response``: a route whose responses are kept, by what its handler is given.

::

    @router.get("/products/{product_id}")
    @cached_response(ttl=60, ctx_dep=runtime.get_context, tags=["product:{product_id}"])
    async def product(product_id: UUID, user: Annotated[User, Depends(current_user)]): ...

    await ctx.invalidate_tags(f"product:{product_id}")

The key is every argument of the handler (path, query, headers, what dependencies returned), and
whoever is bound: tenant and principal. Dependencies run for each request, so what they refuse is
refused on a hit as well; the handler runs once for each key and miss, and sees nothing that is
not in the key (``seen``). An argument that cannot be keyed is refused when the route is made.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

from fastapi import BackgroundTasks, Depends, Request, Response
from fastapi.requests import HTTPConnection
from fastapi.security import SecurityScopes

from forze.application.contracts.cache import CACHED, CacheSpec
from forze.application.execution import ExecutionContext
from forze.application.integrations.cached.arguments import (
    Arguments,
    Ignore,
    Tag,
    bare,
    hints_of,
)
from forze.application.integrations.cached.function import (
    Per,
    checked_name,
    keeps_apart,
    label_of,
    seconds,
)
from forze.application.integrations.cached.ports import with_ttl
from forze.errors import ConfigurationError
from forze_fastapi.context import ContextDep, context_dependency, declare
from forze_fastapi.idempotency.answers import call
from forze_fastapi.response_cache.exchange import Exchange
from forze_fastapi.response_cache.stored import KEPT, StoredCodec

H = TypeVar("H", bound=Callable[..., Any])

_PARAMETER: Final = "forze_cached"
_SUCCESSFUL: Final = frozenset(range(200, 300)) - {206}
_FASTAPIS: Final = (HTTPConnection, Response, BackgroundTasks, SecurityScopes)
"""What FastAPI gives a handler that is no part of a key."""


class Cached:
    """One cached handler: its name, its cache, its key, and what of a response is kept."""

    codec: Final = StoredCodec()

    def __init__(
        self,
        handler: Callable[..., Any],
        *,
        ttl: timedelta | float | None,
        cache: CacheSpec | str,
        key: str | Callable[..., Any] | None,
        tags: Sequence[Tag],
        ignore: Ignore,
        vary: Collection[str],
        per: Per | None,
        name: str | None,
        version: str | int,
        public: bool,
        max_age: timedelta | float | None,
        statuses: Collection[int],
        headers: Collection[str],
        obey: bool,
    ) -> None:
        target = inspect.unwrap(handler)
        self.name = checked_name(name or f"{target.__module__}.{target.__qualname__}")
        self.label = label_of(self.name)
        where = f"cached response {self.name}"
        if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
            raise ConfigurationError(
                f"{where}: it is a generator, whose answer cannot be kept", name=self.name
            )
        if isinstance(vary, str) or isinstance(headers, str):
            raise ConfigurationError(f"{where}: vary= and headers= are lists of names")
        self.handler = handler
        self.spec = CacheSpec(name=cache) if isinstance(cache, str) else cache
        self.cache = with_ttl(self.spec, seconds(ttl, where), where)
        self.tenants_apart, self.principals_apart = keeps_apart(per, where)
        hints = hints_of(handler)
        ignored = (ignore,) if isinstance(ignore, str | type) else tuple(ignore)
        self.arguments = Arguments(
            handler, where, hints=hints, ignore=(*ignored, *_FASTAPIS), key=key, tags=tags
        )
        self.tagged = bool(tags)
        self.version = version
        self.vary = tuple(dict.fromkeys(each.lower() for each in vary))
        self.public = public
        self.max_age = _max_age(max_age, where)
        self.statuses = frozenset(statuses)
        self.kept = KEPT | {each.lower() for each in headers} - {"set-cookie"}
        self.obey = obey
        replaced = {
            name
            for name, hint in hints.items()
            if isinstance(kind := bare(hint), type) and issubclass(kind, HTTPConnection | Response)
        }
        self.lends = self.arguments.lends(apart=replaced)
        self.shapes: dict[tuple[Any, ...], bytes] = {}


_NOT_MODIFIED: Final = {304: {"description": "It is what `If-None-Match` names."}}


def cached_response(
    ttl: timedelta | float | None = None,
    *,
    ctx_dep: ContextDep | None = None,
    cache: CacheSpec | str = CACHED,
    key: str | Callable[..., Any] | None = None,
    tags: str | Sequence[Tag] = (),
    ignore: Ignore = (),
    vary: Collection[str] = (),
    per: Per | None = "principal",
    name: str | None = None,
    version: str | int = 1,
    public: bool = False,
    max_age: timedelta | float | None = None,
    statuses: Collection[int] = _SUCCESSFUL,
    headers: Collection[str] = (),
    obey_request: bool = False,
) -> Callable[[H], H]:
    """Keep the responses of a route's handler; for GET and HEAD, other methods run it.

    ``ttl``: how long a response is kept (a timedelta, or seconds); None is the cache's own.
    ``ctx_dep`` is the dependency that gives the context, such as ``runtime.get_context``; without
    one it is the runtime of the application's ``runtime_lifespan``.
    ``cache``, ``key``, ``tags``, ``ignore``, ``name``, ``version``: as for ``cached``.
    ``vary``: request headers that are part of the key, and of ``Vary``.
    ``per``: whom responses are kept apart for: each bound ``"principal"`` (and tenant), each
    ``"tenant"``, or nobody (None: all callers share them).
    ``public`` lets proxies keep a response that is for no principal; ``max_age`` bounds for how
    long callers may reuse one without asking (0: they always ask, and get a 304).
    ``statuses`` are kept, with the ``headers`` named here besides the usual ones.
    ``obey_request``: ``Cache-Control: no-cache`` of a request has the handler run anew,
    ``no-store`` past the cache.

    Called by anybody but FastAPI, the handler is what it was: it runs.
    A response that sets a cookie, streams, or says that it is private is not kept nor shared.
    Raises ``ConfigurationError`` for an argument that cannot be part of a key.
    """

    def decorate(handler: H) -> H:
        cached = Cached(
            handler,
            ttl=ttl, cache=cache, key=key, ignore=ignore, vary=vary, per=per, name=name,
            tags=(tags,) if isinstance(tags, str) else tuple(tags), version=version,
            public=public, max_age=max_age, statuses=statuses, headers=headers,
            obey=obey_request,
        )  # fmt: skip

        @functools.wraps(handler)
        async def answered(*args: Any, **values: Any) -> Any:
            exchange: Exchange | None = values.pop(_PARAMETER, None)
            if exchange is None:  # not called by FastAPI
                return await call(handler, *args, **values)
            return await exchange.run(values)

        declare(answered, handler, **{_PARAMETER: _exchanges(cached, ctx_dep)})
        return answered  # type: ignore[return-value] # called by FastAPI, which asks its signature

    return decorate


def _exchanges(cached: Cached, ctx_dep: ContextDep | None) -> Callable[..., Exchange]:
    async def exchange(request: Request, response: Response, ctx: Any = None) -> Exchange:
        return Exchange(cached, _ambient(request) if ctx_dep is None else ctx, request, response)

    # Documented by register_exception_handlers, without responses= on each route.
    exchange.forze_responses = _NOT_MODIFIED  # type: ignore[attr-defined]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("request", keyword, annotation=Request),
        inspect.Parameter("response", keyword, annotation=Response),
    ]
    if ctx_dep is not None:
        context = Depends(context_dependency(ctx_dep))
        parameters.append(inspect.Parameter("ctx", keyword, default=context))
    exchange.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return exchange  # type: ignore[return-value] # awaited by FastAPI


def _ambient(request: Request) -> ExecutionContext:
    # Not a dependency: FastAPI takes a tenth of the time of a hit to resolve one more.
    runtime = getattr(request.state, "runtime", None)
    if runtime is None:
        raise ConfigurationError(
            "cached_response has no context: use lifespan=runtime_lifespan(runtime), or give "
            "ctx_dep=runtime.get_context",
            name="ctx_dep",
        )
    ctx: ExecutionContext = runtime.get_context()
    return ctx


def _max_age(given: timedelta | float | None, where: str) -> float | None:
    if given == 0 and not isinstance(given, bool):
        return 0.0
    found = seconds(given, where)
    return None if found is None else found.total_seconds()
