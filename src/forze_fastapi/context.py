"""The execution context as a dependency.

``ctx_dep`` is whatever gives the context: ``runtime.get_context``, or any FastAPI dependency,
sync or async, with dependencies of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from fastapi import Depends

from forze.application.execution import ExecutionContext, ExecutionRuntime
from forze.errors import ConfigurationError

ContextDep: TypeAlias = Callable[..., ExecutionContext | Awaitable[ExecutionContext]]
"""A dependency that gives the execution context, such as ``runtime.get_context``."""


def context_of(runtime: ExecutionRuntime) -> Callable[[], Awaitable[ExecutionContext]]:
    """The runtime's context as a dependency: ``Annotated[ExecutionContext, Depends(...)]``.

    The same function for a runtime each time, so that ``dependency_overrides`` finds it.
    """
    if not isinstance(runtime, ExecutionRuntime):
        raise ConfigurationError(f"context_of takes the ExecutionRuntime, not {runtime!r}")
    return _Context(runtime)


class _Context:
    """A coroutine function, so that FastAPI sends nobody to a thread for an attribute."""

    def __init__(self, runtime: ExecutionRuntime) -> None:
        self._runtime = runtime

    async def __call__(self) -> ExecutionContext:
        return self._runtime.get_context()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Context) and other._runtime is self._runtime

    def __hash__(self) -> int:
        return hash((_Context, id(self._runtime)))


def context_dependency(ctx_dep: ContextDep) -> Callable[..., Any]:
    """``ctx_dep`` as it is best given to ``Depends``.

    ``runtime.get_context`` is a plain function, which FastAPI would call in a thread; it becomes
    :func:`context_of` the runtime. Any other dependency stays what it is.
    """
    if not callable(ctx_dep):
        raise ConfigurationError(
            f"ctx_dep is a function that gives the context, such as runtime.get_context, "
            f"not {ctx_dep!r}",
            name="ctx_dep",
        )
    owner = getattr(ctx_dep, "__self__", None)
    if isinstance(owner, ExecutionRuntime) and ctx_dep == owner.get_context:
        return context_of(owner)
    return ctx_dep


def declare(
    wrapper: Callable[..., Any], handler: Callable[..., Any], **dependencies: Callable[..., Any]
) -> None:
    """Let FastAPI see the parameters of ``handler`` on ``wrapper``, and give it more of them.

    For decorators of handlers: each of ``dependencies`` is a keyword that ``wrapper`` is called
    with and ``handler`` does not know, filled by that dependency. Annotations that are text are
    resolved where ``handler`` was defined.
    """
    signature = _signature(handler)
    taken = signature.parameters.keys() & dependencies.keys()
    if taken:
        raise ConfigurationError(
            f"{handler!r} has a parameter {taken.pop()!r} of its own; give it another name"
        )
    known = signature.parameters.values()
    plain = [each for each in known if each.kind is not each.VAR_KEYWORD]
    rest = [each for each in known if each.kind is each.VAR_KEYWORD]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=Depends(dependency))
        for name, dependency in dependencies.items()
    ]
    wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*plain, *added, *rest]
    )


def _signature(handler: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(handler, eval_str=True)
    except NameError:  # an annotation only type checkers can see: FastAPI's to complain of
        return inspect.signature(handler)
