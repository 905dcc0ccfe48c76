"""Functions under a policy: the decorator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import ParamSpec, Protocol, TypeVar

from forze.application.contracts.resilience import ResiliencePort
from forze.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")


class Context(Protocol):
    """What has a resilience port, such as an ``ExecutionContext``."""

    @property
    def resilience(self) -> ResiliencePort:
        """Runs calls under policies."""
        ...


def resilient(
    name: str,
    *,
    ctx: Callable[[], Context],
    route: str | Callable[..., str | None] | None = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Every call of the async function runs under the policy ``name``.

    ``ctx`` gives the execution context when it is called (``runtime.get_context``). ``route`` is
    the name of the argument that says which route it is (by its text), or a function of the
    arguments. Raises as ``ResiliencePort.run`` does.
    """
    if not callable(ctx):
        raise ConfigurationError(
            "resilient: ctx is a function that gives the context, such as runtime.get_context, "
            f"not {ctx!r}",
            name="ctx",
        )

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        _refuse_what_cannot_be_awaited(function)
        route_of = _route_of(function, route)

        @functools.wraps(function)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            call = functools.partial(function, *args, **kwargs)
            return await ctx().resilience.run(name, call, route=route_of(*args, **kwargs))

        return guarded

    return decorate


def _refuse_what_cannot_be_awaited(function: object) -> None:
    generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if generates or not callable(function):
        raise ConfigurationError(
            f"resilient: {function!r} is no async function (nor may it be a generator; "
            "@classmethod stands above @resilient)",
            name="function",
        )


def _route_of(
    function: Callable[..., object], route: str | Callable[..., str | None] | None
) -> Callable[..., str | None]:
    if route is None:
        return lambda *args, **kwargs: None
    if not isinstance(route, str):
        return route
    signature = inspect.signature(function)
    if route not in signature.parameters:
        raise ConfigurationError(
            f"resilient: {getattr(function, '__qualname__', function)} has no argument {route!r}; "
            "route= names one of its arguments, or is a function of them",
            name=route,
            known=signature.parameters,
        )

    def argument(*args: object, **kwargs: object) -> str | None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        value: str | None = bound.arguments[route]
        return value

    return argument
