"""Cache-aside for one namespace: what a route uses instead of the client.

::

    users = CacheService[User](redis, "users", default_ttl=600)
    user = await users.get_or_set(user_id, lambda: load_user(user_id))

Making a service is cheap, one for each request is fine: what lasts (the flights of
``get_or_set``, what is known of an outage) belongs to the client.

An outage never raises and never lasts: ``get`` gives None, ``set`` and ``delete`` False,
``get_or_set`` what its factory makes, and no call takes longer because of Redis than
``budget_of(redis)`` seconds in all. What a program does wrong does raise, before anything is
sent: a TTL of zero, a value that would come back as another, an identifier of a wrong type.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, ClassVar, Final, Generic, Optional, get_args, get_origin, overload

from redis.asyncio import RedisCluster
from typing_extensions import TypeVar

from fastapi_rc.budget import budget_of
from fastapi_rc.calls import FAILED, Allowance, calls_of
from fastapi_rc.errors import InvalidName, InvalidWiring, ValueNotCacheable
from fastapi_rc.flights import Flight, Landing, twin
from fastapi_rc.keys import (
    PREFIX,
    VERSION,
    Identifier,
    Params,
    invalidate_pattern,
    key_head,
    key_of,
)
from fastapi_rc.lease import Lease
from fastapi_rc.ttl import Ttl, get_ttl_with_jitter, milliseconds
from fastapi_rc.values import Unreadable, Values, is_lease, values_of
from forze_redis.driver.patterns import asked_of, remove_matching_async

T = TypeVar("T", default=Any)

DEFAULT_TTL: Final = 300
MISSING_KEY: Final = -2
"""What :meth:`CacheService.get_ttl` says of an entry that is not there."""

_logger = logging.getLogger("fastapi_rc")
_said: set[tuple[str, type]] = set()


class CacheService(Generic[T]):
    """Values of one namespace under ``{prefix}:{version}:{namespace}:{identifier}``.

    ``redis`` is an asyncio client of redis-py. ``model`` (or ``CacheService[User]``) is what
    values are read as: a model, a dataclass, or an annotation such as ``list[User]``. Without
    one they are read as what they were: JSON values, bytes, models, lists and dicts of them.
    ``default_ttl`` is seconds or a timedelta; None and ``NO_EXPIRY``: no end. ``use_jitter``
    spreads it by +-10 % (a TTL that a call names is kept as it is).
    ``lease``: with it, ``get_or_set`` runs one factory at a time over all processes that use
    one too; one that crashes holds up the others for this long at most.
    Raises ``InvalidName``, ``InvalidTtl``, and ``InvalidWiring`` for what is no asyncio
    client, a model that pydantic does not know, and two models.
    """

    _declared: ClassVar[Any] = None
    _refused: InvalidWiring | None = None

    def __init__(
        self,
        redis: Any,
        namespace: str,
        model: type[T] | None = None,
        default_ttl: Ttl | None = DEFAULT_TTL,
        use_jitter: bool = True,
        prefix: str = PREFIX,
        version: str = VERSION,
        *,
        lease: Ttl | None = None,
    ) -> None:
        self.redis = redis
        self.namespace = namespace
        self.default_ttl = default_ttl
        self.use_jitter = use_jitter
        self.prefix = prefix
        self.version = version
        self._head = key_head(namespace, prefix, version)
        self._default_ms = _milliseconds_or_none(default_ttl, "default_ttl")
        self._lease_ms = _milliseconds_or_none(lease, "lease")
        self._budget = budget_of(redis)
        self._calls = calls_of(redis)
        self.model: Any = self._declared if model is None else model
        values_of(self.model)  # raises here, not at the first use

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for parent in cls.__dict__.get("__orig_bases__", ()):
            origin, args = get_origin(parent), get_args(parent)
            if isinstance(origin, type) and issubclass(origin, CacheService) and len(args) == 1:
                cls._declared = _concrete(args[0])

    @property
    def __orig_class__(self) -> Any:
        """``CacheService[User]``, where that is how the service was made."""
        return self.__dict__.get("_made_as")

    @__orig_class__.setter
    def __orig_class__(self, alias: Any) -> None:
        self.__dict__["_made_as"] = alias
        args = get_args(alias)
        told = _concrete(args[0]) if len(args) == 1 else None
        if self.model is None:
            self.model = told
            values_of(self.model)
        elif told not in (None, self.model, Optional[self.model]) and (  # noqa: UP045
            self.model is not self._declared
        ):
            # Kept, since typing swallows what is raised here from Python 3.12 on.
            self._refused = InvalidWiring(
                f"{type(self).__name__}[{_name(told)}](..., model={_name(self.model)}) names two "
                "models; give one of them, or both the same",
                name="model",
            )
            raise self._refused

    def __repr__(self) -> str:
        model = "" if self.model is None else f", model={_name(self.model)}"
        ttl = f", default_ttl={self.default_ttl!r}"
        return f"{type(self).__name__}(namespace={self.namespace!r}{model}{ttl})"

    @property
    def _values(self) -> Values:
        if self._refused is not None:
            raise self._refused
        return values_of(self.model)

    async def get(self, identifier: Identifier, params: Params | None = None) -> T | None:
        """The value, or None: there is none, it was stored as None, or the cache is away.

        One round trip.
        """
        key = key_of(self._head, identifier, params)
        stored = await self._calls.ask(Allowance(self._budget), self.redis.get, key)
        if stored is None or stored is FAILED:
            return None
        landing = self._read(key, stored)
        return None if landing is None else landing.value

    async def set(
        self,
        identifier: Identifier,
        value: T,
        ttl: Ttl | None = None,
        params: Params | None = None,
    ) -> bool:
        """Whether the value is stored. It lives for ``ttl``, or about the default.

        Raises ``ValueNotCacheable`` for a value that would come back as another, and
        ``InvalidTtl`` for a TTL that is not above zero. One round trip.
        """
        key, ttl_ms = key_of(self._head, identifier, params), self._ttl_ms(ttl)
        body, _ = self._values.encode(value)
        async with self._calls.flights.written(key):
            return await self._put(Allowance(self._budget), key, body, ttl_ms)

    async def delete(self, identifier: Identifier, params: Params | None = None) -> bool:
        """Whether there was something, which is gone now. One round trip.

        What a ``get_or_set`` of this process is making meanwhile will not be stored.
        """
        key = key_of(self._head, identifier, params)
        async with self._calls.flights.written(key):
            reply = await self._calls.ask(Allowance(self._budget), self.redis.delete, key)
        return reply is not FAILED and bool(reply)

    async def exists(self, identifier: Identifier, params: Params | None = None) -> bool:
        """Whether there is an entry, one that holds None included. One round trip."""
        key = key_of(self._head, identifier, params)
        first = await self._calls.ask(Allowance(self._budget), self.redis.getrange, key, 0, 0)
        return first is not FAILED and bool(first) and not is_lease(first)

    async def get_ttl(self, identifier: Identifier, params: Params | None = None) -> int:
        """The seconds an entry has left; -1 without an end, -2 where there is no entry.

        One round trip, with a lease two.
        """
        key = key_of(self._head, identifier, params)
        if self._lease_ms is not None and not await self.exists(identifier, params):
            return MISSING_KEY
        reply = await self._calls.ask(Allowance(self._budget), self.redis.ttl, key)
        return MISSING_KEY if reply is FAILED else int(reply)

    async def invalidate_pattern(self, pattern: str = "*") -> int:
        """How many entries were removed: those whose identifiers match the glob.

        ``f"{identifier}:*"`` are the variants of an identifier, by params or longer ones. On
        a cluster every primary is asked. An outage ends it early: what is left expires. Two
        round trips for each thousand keys of the database (or of each primary).
        """
        glob = invalidate_pattern(self.namespace, pattern, self.prefix, self.version)
        async with self._calls.flights.written(lambda key: key.startswith(self._head)):
            return await self._remove(glob)

    @overload
    async def get_or_set(
        self,
        identifier: Identifier,
        factory: Callable[[], Awaitable[T]],
        ttl: Ttl | None = None,
        params: Params | None = None,
    ) -> T: ...
    @overload
    async def get_or_set(
        self,
        identifier: Identifier,
        factory: Callable[[], T],
        ttl: Ttl | None = None,
        params: Params | None = None,
    ) -> T: ...
    async def get_or_set(
        self,
        identifier: Identifier,
        factory: Any,
        ttl: Ttl | None = None,
        params: Params | None = None,
    ) -> T:
        """The value, made by ``factory`` and stored where there was none; None counts as one.

        The factory is a function without arguments, sync or async, and runs once for all who
        ask meanwhile through this client, in the context of the first, whatever becomes of
        the cache. They share its failure. It is cancelled with the last of them. What it makes
        is not stored if the key is set, deleted or invalidated before: through any service on
        this client, and with a lease by anybody. A value that cannot be stored is returned,
        and a warning logged. Raises ``FactoryCycle`` where the factory waits for itself.

        One round trip where there is a value, else two; with a lease three.
        """
        key, ttl_ms = key_of(self._head, identifier, params), self._ttl_ms(ttl)
        if not callable(factory):
            if inspect.iscoroutine(factory):
                factory.close()
            raise InvalidName(
                f"the factory must be a function, not {type(factory).__name__}: "
                "`lambda: load(id)`, without calling it",
                field="factory",
            )
        allowance = Allowance(self._budget)
        while True:
            landing, leads = await self._calls.flights.share(
                key,
                lambda: self._look(key, allowance),
                lambda flight: self._make(flight, key, factory, ttl_ms, allowance),
            )
            if landing.error is not None:
                raise landing.error if leads else twin(landing.error)
            if leads:
                return landing.value  # type: ignore[no-any-return]
            if landing.body is None:
                return _own(landing.value)  # type: ignore[no-any-return]
            try:
                return self._values.decode(landing.body)  # type: ignore[no-any-return]
            except Unreadable:  # it was made for a service with another model
                continue

    async def _remove(self, glob: str) -> int:
        async def ask(*asked: Any) -> Any:
            reply = await self._calls.ask(Allowance(self._budget), asked_of, *asked)
            return None if reply is FAILED else reply

        learn = self.redis.ping if isinstance(self.redis, RedisCluster) else None
        if learn and await self._calls.ask(Allowance(self._budget), learn) is FAILED:
            return 0  # it does not know its nodes
        return await remove_matching_async(self.redis, glob, ask)

    async def _look(self, key: str, allowance: Allowance) -> Landing | None:
        stored = await self._calls.ask(allowance, self.redis.get, key)
        if stored is FAILED:
            allowance.left = 0  # what cannot be read is not written either
            return None
        return None if stored is None else self._read(key, stored)

    def _read(self, key: str, stored: str | bytes) -> Landing | None:
        try:
            return Landing(body=stored, value=self._values.decode(stored))
        except Unreadable as error:
            _logger.debug("%s holds no value of this service, a miss: %s", key, error)
            return None

    async def _make(
        self,
        flight: Flight,
        key: str,
        factory: Callable[[], Any],
        ttl_ms: int | None,
        allowance: Allowance,
    ) -> Landing:
        lease = None
        if self._lease_ms is not None and allowance.left > 0 and self._calls.runs_scripts:
            lease = Lease(self._calls, self.redis, key, self._lease_ms, self._budget)
            found = await lease.claim(allowance)
            if found is not None and found is not FAILED:
                landing = self._read(key, found)
                if landing is not None:
                    return landing
                lease = None  # what stands there is no value of ours, and is replaced
        try:
            async with nullcontext() if lease is None else lease.kept():
                made = self._encoded(await _run(factory))
            if made.body is not None and not flight.grounded:
                flight.storing = True
                if lease is None:
                    await self._put(allowance, key, made.body, ttl_ms)
                else:
                    await lease.store(allowance, made.body, ttl_ms)
            return made
        finally:
            if lease is not None and not flight.storing:
                await lease.release()

    def _encoded(self, value: Any) -> Landing:
        try:
            body, value = self._values.encode(value)
            return Landing(body=body, value=value)
        except ValueNotCacheable as error:
            if (self._head, error.kind) not in _said:
                _said.add((self._head, error.kind))
                _logger.warning("%s* is never cached (said once): %s", self._head, error)
            return Landing(value=value)

    async def _put(
        self, allowance: Allowance, key: str, body: str | bytes, ttl_ms: int | None
    ) -> bool:
        life = {} if ttl_ms is None else {"px": ttl_ms}
        reply = await self._calls.ask(allowance, self.redis.set, key, body, **life)
        return reply is not FAILED and bool(reply)

    def _ttl_ms(self, ttl: Ttl | None) -> int | None:
        if ttl is not None:
            return milliseconds(ttl)
        if not self.use_jitter or self._default_ms is None:
            return self._default_ms
        return get_ttl_with_jitter(self._default_ms)


def _milliseconds_or_none(ttl: Ttl | None, name: str) -> int | None:
    return None if ttl is None else milliseconds(ttl, name)


async def _run(factory: Callable[[], Any]) -> Any:
    made = factory()
    return await made if inspect.isawaitable(made) else made


def _own(value: Any) -> Any:
    """A copy of a value that no body stands for; itself where it cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:  # whatever the value's own copying raises
        return value


def _name(model: Any) -> str:
    return model.__qualname__ if isinstance(model, type) else str(model)


def _concrete(argument: Any) -> Any:
    return None if isinstance(argument, TypeVar) or argument is Any else argument
