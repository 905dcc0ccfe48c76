"""Lifecycle: what is started before the first request and stopped after the last.

Steps start in order and stop in reverse, each started step exactly once; what goes wrong
on the way down is reported together, never instead of stopping the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from forze.errors import ConfigurationError

if TYPE_CHECKING:
    from forze.application.execution.context import ExecutionContext


async def _nothing(ctx: ExecutionContext) -> None:
    """A side of a step that has nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleStep:
    """One thing to start and stop; ``id`` is unique in its plan."""

    id: str
    startup: Callable[[ExecutionContext], Awaitable[None]] = _nothing
    shutdown: Callable[[ExecutionContext], Awaitable[None]] = _nothing


LifecycleModule: TypeAlias = Callable[[], Iterable[LifecycleStep]]


@dataclass(frozen=True, slots=True)
class LifecyclePlan:
    """Steps and modules of steps, in order. Immutable: each ``with_*`` gives a longer plan."""

    modules: tuple[LifecycleModule, ...] = ()

    @classmethod
    def from_steps(cls, *steps: LifecycleStep) -> LifecyclePlan:
        """A plan of these steps."""
        return cls().with_steps(*steps)

    @classmethod
    def from_modules(cls, *modules: LifecycleModule) -> LifecyclePlan:
        """A plan of these modules (callables that return steps)."""
        return cls().with_modules(*modules)

    def with_steps(self, *steps: LifecycleStep) -> LifecyclePlan:
        """The plan followed by these steps."""
        return self.with_modules(lambda: steps)

    def with_modules(self, *modules: LifecycleModule) -> LifecyclePlan:
        """The plan followed by the steps of these modules."""
        return LifecyclePlan((*self.modules, *modules))

    def freeze(self) -> LifecyclePlan:
        """Itself, after checking that no two steps share an id."""
        self.steps()
        return self

    def steps(self) -> tuple[LifecycleStep, ...]:
        """Every step in order; two with one id are a ``ConfigurationError``."""
        steps = tuple(step for module in self.modules for step in module())
        seen: set[str] = set()
        for step in steps:
            if step.id in seen:
                raise ConfigurationError(
                    f"two lifecycle steps have the id {step.id!r}; give one of them another",
                    name=step.id,
                )
            seen.add(step.id)
        return steps


async def start_steps(
    steps: Iterable[LifecycleStep], ctx: ExecutionContext, started: list[LifecycleStep]
) -> None:
    """Start in order, noting each step that stands in ``started``."""
    for step in steps:
        await step.startup(ctx)
        started.append(step)


async def stop_steps(started: list[LifecycleStep], ctx: ExecutionContext) -> list[BaseException]:
    """Stop every started step, the last first; the failures, in the order they happened."""
    failures: list[BaseException] = []
    while started:
        step = started.pop()
        try:
            await step.shutdown(ctx)
        except (Exception, asyncio.CancelledError) as error:  # the step's own, not the caller's
            error.add_note(f"while stopping lifecycle step {step.id!r}")
            failures.append(error)
    return failures
