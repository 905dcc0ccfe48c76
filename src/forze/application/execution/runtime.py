"""The runtime: builds the dependencies, starts the lifecycle, hands out the context."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from forze.application.execution.context import ExecutionContext
from forze.application.execution.deps import Deps, DepsPlan, DepsRegistry
from forze.application.execution.lifecycle import (
    LifecyclePlan,
    LifecycleStep,
    start_steps,
    stop_steps,
)
from forze.application.integrations.document.telemetry import (
    Telemetry,
    TelemetryDepKey,
    TelemetrySpec,
    open_telemetry,
)
from forze.errors import ConfigurationError


class ExecutionRuntime:
    """An application's wiring, ready to run.

    ``specs`` are checked when the scope is entered: names nobody registered, and columns
    that do not fit their models, fail there instead of at the first request. On the way
    out, background work gets ``drain`` to finish before the lifecycle steps are stopped.

    ``telemetry`` True tells OpenTelemetry what the caches do where ``opentelemetry-api`` is
    installed; False, or ``FORZE_TELEMETRY=off`` in the environment, tells nobody.
    """

    def __init__(
        self,
        *,
        deps: DepsPlan | DepsRegistry,
        lifecycle: LifecyclePlan | None = None,
        specs: Iterable[object] = (),
        drain: timedelta = timedelta(seconds=10),
        telemetry: TelemetrySpec | bool = True,
    ) -> None:
        self._deps = deps.freeze()
        self._lifecycle = (lifecycle or LifecyclePlan()).freeze()
        if not isinstance(specs, Iterable):
            raise ConfigurationError(f"specs= takes a list of specs, not {specs!r}")
        self._specs = tuple(specs)
        self._drain = drain
        self._wanted = telemetry
        self._telemetry: Telemetry | None = None
        self._context: ExecutionContext | None = None
        self._busy = False

    def get_context(self) -> ExecutionContext:
        """The context of the open scope; raises ``ConfigurationError`` outside one."""
        if self._context is None:
            raise ConfigurationError(
                "the runtime is not running; enter `async with runtime.scope():` first"
            )
        return self._context

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[ExecutionContext]:
        """Start everything, run the block, stop everything that was started.

        Can be entered again after it was left, not while it is open.
        """
        if self._busy:
            raise ConfigurationError(
                "the runtime's scope is open already, here or in the process that this one was "
                "forked from; leave it first, or make another runtime"
            )
        self._busy = True
        started: list[LifecycleStep] = []
        try:
            ctx = ExecutionContext(self._build())
            for spec in self._specs:
                ctx.bind(spec)
            try:
                await start_steps(self._lifecycle.steps(), ctx, started)
                await ctx.verify()
                self._context = ctx
                yield ctx
            except Exception as error:
                failures = await _to_the_end(self._stop(ctx, started))
                if failures:
                    raise BaseExceptionGroup(
                        "the scope failed, and so did stopping it", [error, *failures]
                    ) from None
                raise
            except BaseException as error:
                # A cancellation must arrive as one: what else failed is its cause.
                failures = await _to_the_end(self._stop(ctx, started))
                if failures:
                    raise error from _not_stopped(failures)
                raise
            failures = await _to_the_end(self._stop(ctx, started))
            if failures:
                raise _not_stopped(failures)
        finally:
            if self._telemetry is not None:
                self._telemetry.close()
                self._telemetry = None
            self._busy = False

    def _build(self) -> Deps:
        deps, self._telemetry = self._deps.build(), open_telemetry(self._wanted)
        if self._telemetry is None:
            return deps
        return Deps.merge(deps, Deps(plain={TelemetryDepKey: self._telemetry}))

    async def _stop(
        self, ctx: ExecutionContext, started: list[LifecycleStep]
    ) -> list[BaseException]:
        try:
            await ctx.close(self._drain)
        finally:
            self._context = None
        return await stop_steps(started, ctx)


def _not_stopped(failures: list[BaseException]) -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup("stopping the runtime failed", failures)


async def _to_the_end(work: Coroutine[Any, Any, list[BaseException]]) -> list[BaseException]:
    """Finish ``work`` even if the caller is cancelled meanwhile; the cancellation follows, with
    the failures as its cause."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except BaseException:
            pass
    failures = task.result()
    if cancelled is not None:
        raise cancelled from (_not_stopped(failures) if failures else None)
    return failures
