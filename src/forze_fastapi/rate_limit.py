"""Rate limits of routes, as dependencies.

::

    limit = RateLimit("api", ctx_dep=runtime.get_context)

    @router.get("/search", dependencies=[Depends(limit)])

A refusal is 429 with a problem of the kind that draft-ietf-httpapi-ratelimit-headers-11
registers; every answer says how much is left.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import quote

import http_sf
from fastapi import Depends, Response
from fastapi.requests import HTTPConnection

from forze.application.contracts.resilience import (
    RateLimitDecision,
    RateLimitStore,
    RateLimitStrategy,
)
from forze.application.contracts.tenancy import current_principal, current_tenant
from forze.application.execution import ExecutionContext
from forze.application.integrations.resilience import LocalRateLimitStore
from forze.errors import ConfigurationError
from forze_fastapi.context import ContextDep, context_dependency
from forze_fastapi.errors import HTTPProblem, problem_responses
from forze_fastapi.quota_fields import POLICY, STATE, Quota, fields_of
from forze_fastapi.response_headers import set_headers

_MET: Final = "forze.rate_limits"
_PROBLEM: Final = "https://iana.org/assignments/http-problem-types#"
_SITE_BITS: Final = 64


class RateLimit:
    """Lets a request through if it can have permits of a limit; else it is answered with 429.

    ``policy`` names a policy of ``ResilienceDepsModule`` that has a rate limit, and the limit in
    the headers. Instead, ``strategy`` gives the limit here, and ``store`` where it is kept
    (``redis_rate_limit_store(client)``; None: in this process); then there is no ``ctx_dep``.

    ``key`` says whose bucket it is, from the request; None is one bucket for all. By default
    that is :func:`caller`. ``cost`` is how many permits a request takes, or says so from the
    request; 0 only looks. ``legacy_headers`` adds ``X-RateLimit-*``.

    Where a request meets several limits and one refuses, it takes permits of none: what it had
    of the earlier ones is given back. While the store is away a limit of this process stands in,
    or the request is answered with 503 (``RateLimitStrategy(fail="closed")``).
    """

    def __init__(
        self,
        policy: str,
        *,
        ctx_dep: ContextDep | None = None,
        strategy: RateLimitStrategy | None = None,
        store: RateLimitStore | None = None,
        key: Callable[[Any], str | Awaitable[str | None] | None] | None = None,
        cost: int | Callable[[Any], int] = 1,
        legacy_headers: bool = False,
    ) -> None:
        _check(policy, ctx_dep, strategy, store, cost)
        self.policy = policy
        self._inline = None if strategy is None else _Inline(strategy, store)
        self._key = caller if key is None else key
        self._cost = cost
        self._legacy = legacy_headers
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter("connection", keyword, annotation=HTTPConnection),
            inspect.Parameter("response", keyword, annotation=Response),
        ]
        if ctx_dep is not None:
            context = Annotated[Any, Depends(context_dependency(ctx_dep))]
            parameters.append(inspect.Parameter("ctx", keyword, annotation=context))
        self.__signature__ = inspect.Signature(parameters)

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """For ``responses=`` of a route: the refusals."""
        told = {429: f"More than the limit {self.policy!r} allows"}
        if self._inline is None or self._inline.strategy.fail == "closed":
            told[503] = "The server that counts is away, and the limit refuses meanwhile"
        answers = problem_responses(*told)
        for status, description in told.items():
            answer = answers[status]
            answer["headers"] = {**answer["headers"], **_HEADERS}
            answer["description"] = description
        return answers

    @property
    def forze_responses(self) -> dict[int | str, dict[str, Any]]:
        """The same, for ``register_exception_handlers`` to document without being told."""
        return self.responses

    async def __call__(
        self,
        connection: HTTPConnection,
        response: Response,
        ctx: ExecutionContext | None = None,
    ) -> RateLimitDecision:
        """Take permits; the decision, or an ``HTTPProblem``."""
        key = self._key(connection)
        route = await key if isinstance(key, Awaitable) else key
        cost = self._cost_of(connection)
        bucket = self._bucket(ctx, route)
        quota = Quota(self.policy, bucket.strategy, await bucket.take(cost))
        met: list[_Met] = connection.scope.setdefault(_MET, [])
        met.append(_Met(quota, bucket, cost))
        if not quota.decision:
            met[:] = [await _given_back(each) for each in met]
        fields = fields_of([each.quota for each in met], legacy=self._legacy)
        set_headers(connection, response, fields)
        if not quota.decision:
            raise _refusal(quota, fields)
        return quota.decision

    def _cost_of(self, connection: HTTPConnection) -> int:
        if not callable(self._cost):
            return self._cost
        cost: object = self._cost(connection)
        # A negative one, made of what a caller wrote, would fill the caller's bucket.
        if type(cost) is not int or cost < 0:
            raise ConfigurationError(
                f"RateLimit {self.policy!r}: its cost function gave {cost!r}; it has to give a "
                "whole number, 0 or more",
                name="cost",
            )
        return cost

    def _bucket(self, ctx: ExecutionContext | None, route: str | None) -> _Bucket:
        name, inline = self.policy, self._inline
        if inline is not None:
            store, strategy = inline.store, inline.strategy
            return _Bucket(strategy, lambda cost: store.try_acquire((name, route), strategy, cost))
        assert ctx is not None
        port = ctx.resilience
        policy = port.policies.get(name)
        limit = None if policy is None else policy.rate_limit
        if limit is None:
            raise ConfigurationError(
                f"RateLimit: there is no policy {name!r} with a rate limit; give "
                f"ResilienceDepsModule(policies={{{name!r}: ResiliencePolicy(rate_limit=...)}})",
                name=name,
                known=port.policies,
            )
        return _Bucket(limit, lambda cost: port.try_acquire(name, route=route, cost=cost))


def caller(connection: HTTPConnection) -> str:
    """Whose request it is: the bound principal, of the bound tenant; else the tenant; else the
    client's address, of IPv6 the network of 64 bits that a site has.

    The address is that of the connection. Behind a proxy that is the proxy's, and everybody
    shares one bucket, unless the server is told to trust its ``X-Forwarded-For`` (uvicorn:
    ``--proxy-headers --forwarded-allow-ips``); trusted from anybody, anybody writes it.
    """
    tenant, principal = current_tenant(), current_principal()
    who = [("tenant", tenant), ("principal", principal)]
    bound = [f"{what}:{quote(name, safe='')}" for what, name in who if name is not None]
    return "/".join(bound) or f"address:{_address(connection)}"


def _address(connection: HTTPConnection) -> str:
    if connection.client is None:
        return ""
    host = connection.client.host
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((address, _SITE_BITS), strict=False))


class _Inline:
    """A limit that was given with its strategy."""

    def __init__(self, strategy: RateLimitStrategy, store: RateLimitStore | None) -> None:
        self.strategy = strategy
        self.store = LocalRateLimitStore() if store is None else store


class _Bucket(NamedTuple):
    """A limit for one caller; ``take`` a negative number of permits gives them back."""

    strategy: RateLimitStrategy
    take: Callable[[int], Awaitable[RateLimitDecision]]


class _Met(NamedTuple):
    """A limit that a request has met."""

    quota: Quota
    bucket: _Bucket
    cost: int


async def _given_back(met: _Met) -> _Met:
    """``met`` after the request was refused: what it took is there again."""
    if not met.quota.decision or met.cost <= 0:
        return met
    decision = await met.bucket.take(-met.cost)
    return met._replace(quota=met.quota._replace(decision=decision))


def _refusal(quota: Quota, fields: dict[str, str]) -> HTTPProblem:
    decision, closed = quota.decision, quota.strategy.fail == "closed"
    members: dict[str, Any] = {"violated-policies": [quota.name]}
    if decision.degraded and closed:
        return HTTPProblem(
            503,
            f"{_PROBLEM}temporary-reduced-capacity",
            title="Request cannot be satisfied due to temporary server capacity constraints",
            headers=fields,
            **members,
        )
    detail = None
    if decision.retry_after is None:
        detail = "The request costs more than the quota ever holds; ask for less."
    return HTTPProblem(
        429,
        f"{_PROBLEM}quota-exceeded",
        detail,
        title="Request cannot be satisfied as assigned quota has been exceeded",
        headers=fields,
        **members,
    )


_HEADERS: Final = {
    POLICY: {
        "description": 'What each limit allows: `"api";q=10;w=60` is 10 in 60 seconds.',
        "schema": {"type": "string"},
    },
    STATE: {
        "description": 'Where the caller stands: `"api";r=3;t=12` is 3 left, all in 12 seconds.',
        "schema": {"type": "string"},
    },
}


def _check(policy: object, ctx_dep: object, strategy: object, store: object, cost: object) -> None:
    try:
        named = isinstance(policy, str) and policy != "" and bool(http_sf.ser((policy, {})))
    except ValueError:
        named = False
    if not named:
        raise ConfigurationError(
            f"RateLimit: policy is a name of ASCII characters, not {policy!r}", name="policy"
        )
    if (ctx_dep is None) is (strategy is None):
        raise ConfigurationError(
            "RateLimit: give ctx_dep, such as runtime.get_context, for a policy of "
            "ResilienceDepsModule, or strategy=RateLimitStrategy(...)",
            name="ctx_dep",
        )
    if strategy is not None and not isinstance(strategy, RateLimitStrategy):
        raise ConfigurationError(
            f"RateLimit: strategy is a RateLimitStrategy, not {strategy!r}", name="strategy"
        )
    if store is not None and strategy is None:
        raise ConfigurationError(
            "RateLimit: store goes with strategy; the store of a policy is given to "
            "ResilienceDepsModule(rate_limit_store=...)",
            name="store",
        )
    if not callable(cost) and (type(cost) is not int or cost < 0):
        raise ConfigurationError(
            f"RateLimit: cost is a number of permits, or a function of the request, not {cost!r}",
            name="cost",
        )
