"""``@cached``: an async function whose values are kept, by its arguments.

::

    @cached(ttl=60, ctx=runtime.get_context, tags=["products", "product:{product_id}"])
    async def price_of(product_id: UUID, currency: str = "EUR") -> Decimal: ...

    await price_of(widget.id)                        # runs once for each key and miss
    await price_of.invalidate(widget.id)             # this one
    await ctx.invalidate_tags(f"product:{widget.id}")  # every value that carries it

What a value may depend on is in its key: the arguments, and the tenant or principal where that
is said. Where it runs for several callers it sees nothing else: none of their context variables,
their tenant and principal only if they are part of the key. So a value never reaches somebody it
was not made for; a function that needs what is not in its key fails at once, for everyone.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import (
    Any,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
)

from forze.application.contracts.cache import CACHED, CachePort, CacheSpec
from forze.application.integrations.cached.arguments import Arguments, Ignore, Tag, hints_of
from forze.application.integrations.cached.canonical import canonical
from forze.application.integrations.cached.ports import (
    BoundFunction,
    Call,
    FunctionCaches,
    with_ttl,
)
from forze.application.integrations.cached.values import ValueCodec
from forze.application.integrations.document.l1.store import L1Stats
from forze.application.integrations.document.stats import CacheStats
from forze.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Per: TypeAlias = Literal["tenant", "principal"]


class HasFunctions(Protocol):
    """What a cached function needs of the execution context."""

    @property
    def functions(self) -> FunctionCaches:
        """The cached functions of the runtime."""
        ...

    def cache(self, spec: CacheSpec) -> CachePort:
        """The cache registered under ``spec.name``."""
        ...


class CachedFunction(Protocol[P, T_co]):
    """A function whose values are kept. Calling it is as before, but for the cost."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]:
        """The value, never older than an invalidation acknowledged before the call.

        A hit is one round trip, or none where the process keeps the value itself.
        """
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, None]:
        """Invalidate the value of these arguments. In a transaction it takes effect at commit."""
        ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]:
        """Run the function for these arguments now, keep the value and return it."""
        ...

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of these arguments in its cache: the function's name and a digest."""
        ...

    def tags(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]:
        """The tags that the value of these arguments carries."""
        ...

    def stats(self) -> CacheStats:
        """What the cache did for this function in this process."""
        ...

    def l1_stats(self) -> L1Stats | None:
        """Counts of the entries kept in this process; None without an L1."""
        ...


class Described(Generic[T]):
    """A cached function: its name, its cache, its values, its arguments."""

    def __init__(
        self,
        function: Callable[..., Awaitable[T]],
        *,
        name: str | None,
        cache: CacheSpec | str,
        ttl: timedelta | float | None,
        per: Per | None,
        version: str | int,
        condition: Callable[[T], bool] | None,
        local: Mapping[str, Any],
        ignore: Ignore,
        key: str | Callable[..., Any] | None,
        tags: Sequence[Tag],
    ) -> None:
        self.name = checked_name(name or f"{function.__module__}.{function.__qualname__}")
        self.label = label_of(self.name)
        where = f"cached function {self.name}"
        self._function = function
        self.spec = CacheSpec(name=cache) if isinstance(cache, str) else cache
        self.cache = with_ttl(self.spec, seconds(ttl, where), where)
        self.tenants_apart, self.principals_apart = keeps_apart(per, where)
        self._version = version
        self._condition = condition
        self._local = local
        self._codec: ValueCodec[T] | None = None
        hints = self._resolve()
        self.arguments = Arguments(function, where, hints=hints, ignore=ignore, key=key, tags=tags)
        self.tagged = bool(tags)
        self.lends = self.arguments.lends()
        self._beside: bytes | None = None

    def _resolve(self) -> dict[str, Any]:
        """The annotations, and the codec unless what is returned is not known yet."""
        hints = hints_of(self._function, self._local)
        if "return" in hints or "return" not in inspect.unwrap(self._function).__annotations__:
            returned = hints.get("return", Any)
            where = f"cached function {self.name}"
            self._codec = ValueCodec(returned, where, condition=self._condition)
            self._local = {}  # of the frame it was decorated in, which must not live on
        return hints

    @property
    def codec(self) -> ValueCodec[T]:
        """How values become bodies; raises ``ConfigurationError`` if the annotation names
        nothing."""
        if self._codec is None:
            self._resolve()
        if self._codec is None:
            raise ConfigurationError(
                f"cached function {self.name}: its return annotation names something that is not "
                "there; define (or import) it in the function's module",
                name=self.name,
            )
        return self._codec

    def call(
        self, bound: BoundFunction[T], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Call[T]:
        """The call with these arguments, for whoever makes it now."""
        values = self.arguments.bind(args, kwargs)
        beside = self._beside
        if beside is None:
            beside = self._beside = canonical((self.name, self.codec.schema, self._version))
        tenant, principal = bound.tenant(), bound.principal()
        if self.tenants_apart:
            beside += canonical((tenant, principal))
        return Call(
            f"{self.label}:{self.arguments.digest(values, beside)}",
            self.arguments.tags(values),
            functools.partial(self._function, *args, **kwargs),
            tenant=tenant,
            principal=principal,
        )


def cached(
    ttl: timedelta | float | None = None,
    *,
    ctx: Callable[[], HasFunctions],
    cache: CacheSpec | str = CACHED,
    key: str | Callable[..., Any] | None = None,
    tags: Sequence[Tag] = (),
    ignore: Ignore = (),
    per: Per | None = None,
    name: str | None = None,
    version: str | int = 1,
    condition: Callable[[Any], bool] | None = None,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], CachedFunction[P, T]]:
    """Keep the values of an async function by its arguments.

    ``ttl``: how long a value lives (a timedelta, or seconds); None is the cache's own.
    ``ctx`` gives the execution context when the function is called (``runtime.get_context``).
    ``cache`` is the ``CacheSpec`` (or the name) of the cache to use: with its early refresh and
    L1, if it has them.
    ``key`` says what of the arguments counts: a template such as ``"{product.id}"``, or a
    function of some of them, by name; without it all do but those in ``ignore`` (names, or
    types). What is ignored should outlive the call.
    ``tags``: texts, templates such as ``"product:{product_id}"``, or functions of some of the
    arguments that return one tag or several.
    ``per``: ``"tenant"`` keeps the bound tenants apart (a tenant-aware cache does so by itself),
    ``"principal"`` the principals of each.
    ``version``: another one reads nothing that was kept before; so does another annotation.
    ``condition``: which values are kept.

    Raises ``ConfigurationError`` when decorating what is not ``async def``, a return type that
    is not JSON, an argument that cannot be part of a key.
    """
    if not callable(ctx):
        raise ConfigurationError(
            "cached: ctx is a function that gives the context, such as runtime.get_context, "
            f"not {ctx!r}",
            name="ctx",
        )

    def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> CachedFunction[P, T]:
        _check_async(function)
        described: Described[T] = Described(
            function,
            name=name,
            cache=cache,
            ttl=ttl,
            per=per,
            version=version,
            condition=condition,
            local=sys._getframe(1).f_locals,
            ignore=ignore,
            key=key,
            tags=(tags,) if isinstance(tags, str) else tuple(tags),
        )
        return _wrapped(function, described, ctx)

    return decorate


def _wrapped(
    function: Callable[P, Coroutine[Any, Any, T]],
    described: Described[T],
    ctx: Callable[[], HasFunctions],
) -> CachedFunction[P, T]:
    @functools.wraps(function)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = ctx().functions.of(described)
        return await bound.get(described.call(bound, args, kwargs))

    async def invalidate(*args: P.args, **kwargs: P.kwargs) -> None:
        bound = ctx().functions.of(described)
        await bound.invalidate(described.call(bound, args, kwargs))

    async def refresh(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = ctx().functions.of(described)
        call = described.call(bound, args, kwargs)
        await bound.invalidate(call)
        return await bound.get(call)

    def key(*args: P.args, **kwargs: P.kwargs) -> str:
        return str(described.call(ctx().functions.of(described), args, kwargs))

    def tags(*args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]:
        return described.arguments.tags(described.arguments.bind(args, kwargs))

    more = {
        "invalidate": invalidate,
        "refresh": refresh,
        "key": key,
        "tags": tags,
        "stats": lambda: ctx().functions.of(described).stats(),
        "l1_stats": lambda: ctx().functions.of(described).l1_stats(),
    }
    for attribute, method in more.items():
        setattr(wrapped, attribute, method)
    return cast("CachedFunction[P, T]", wrapped)


def checked_name(name: str) -> str:
    """The name of a cached function; raises ``ConfigurationError`` for one that is none."""
    if not name or name.startswith("~"):
        raise ConfigurationError(
            f"a cached function's name is text that does not begin with '~', not {name!r}",
            name="name",
        )
    return name


def label_of(name: str) -> str:
    """``name`` as it stands in keys, for people to read; what tells two apart is the digest."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def seconds(ttl: timedelta | float | None, where: str) -> timedelta | None:
    """``ttl`` as a timedelta; raises ``ConfigurationError`` for what is none."""
    if ttl is None or isinstance(ttl, timedelta):
        return ttl
    given: object = ttl
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1e10:
        raise ConfigurationError(
            f"{where}: ttl is a timedelta, or seconds above zero, not {ttl!r}", name="ttl"
        )
    return timedelta(seconds=given)


def keeps_apart(per: object, where: str) -> tuple[bool, bool]:
    """Whether tenants, and principals, have values of their own."""
    if per not in (None, "tenant", "principal"):
        raise ConfigurationError(
            f'{where}: per is "tenant", "principal" or None, not {per!r}', name="per"
        )
    return per is not None, per == "principal"


def _check_async(function: object) -> None:
    if not inspect.iscoroutinefunction(function):
        name = getattr(function, "__qualname__", repr(function))
        raise ConfigurationError(
            f"cached: {name} is not an `async def` function. A value that is computed without "
            "waiting needs functools.cache; around blocking code write an async function that "
            "awaits asyncio.to_thread(...)",
            name=name,
        )
