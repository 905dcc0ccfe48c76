"""Liveness and readiness, for whoever routes requests here or restarts the process.

Liveness says that the process answers, and asks nobody: a server behind us that is away is no
reason to restart us. Readiness asks every resource, at once and each within a budget, and says
whether requests can be served. Many probes in a moment are one question.

Answers name resources and say how they are. What exactly went wrong is in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any, Final, Literal, TypeAlias

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from forze.application.contracts.health import HealthCheck
from forze.application.execution import ExecutionContext, ExecutionRuntime
from forze.errors import ConfigurationError
from forze_fastapi.errors import HTTPProblem, problem_response

logger: Final = logging.getLogger("forze.http")

Verdict: TypeAlias = Literal["up", "down", "slow"]
Readiness: TypeAlias = Literal["ok", "degraded", "down", "draining", "stopped"]
BUDGET: Final = timedelta(milliseconds=500)
"""For each resource to answer: below the second that orchestrators wait unless told otherwise."""

_NO_STORE: Final = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceHealth:
    """How a resource is. ``slow``: it did not answer within the budget, which counts as down."""

    status: Verdict
    required: bool
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """How the service is, and each of its resources.

    ``degraded``: something is away that can be done without. ``stopped``: the runtime does not
    run (yet, or any longer). A report is what a check answers too, so another runtime is
    ``HealthCheck(name="audit", ask=HealthProbe(audit).report)``.
    """

    status: Readiness
    resources: Mapping[str, ResourceHealth]

    @property
    def ready(self) -> bool:
        """Whether requests can be served."""
        return self.status in ("ok", "degraded")

    ok = ready

    @property
    def error(self) -> str | None:
        """Who is not well."""
        away = [name for name, each in self.resources.items() if each.status != "up"]
        return None if self.ready else ", ".join((self.status, *away))


class HealthProbe:
    """Asks the resources of a runtime, and remembers the answers for a moment."""

    def __init__(
        self,
        runtime: ExecutionRuntime,
        *,
        checks: Iterable[HealthCheck] = (),
        required: Iterable[str] | None = None,
        budget: timedelta = BUDGET,
        fresh_for: timedelta = timedelta(seconds=1),
    ) -> None:
        """``checks`` of your own stand beside those of the runtime's modules. ``required`` names
        the resources without which nothing can be served; None: as their checks say. Each is
        given ``budget`` to answer, and asked again after ``fresh_for``."""
        if not isinstance(runtime, ExecutionRuntime):
            raise ConfigurationError(f"health needs the ExecutionRuntime, not {runtime!r}")
        if isinstance(required, str):
            raise ConfigurationError(
                f"health: required takes several names, not one text: {{{required!r}}}",
                name="required",
            )
        given: tuple[object, ...] = (budget, fresh_for)
        if not all(isinstance(each, timedelta) for each in given) or (
            not budget > timedelta(0) <= fresh_for
        ):
            raise ConfigurationError(
                f"health: budget ({budget!r}) and fresh_for ({fresh_for!r}) are timedeltas, the "
                "one above zero and the other not below",
                name="budget",
            )
        self._runtime = runtime
        self._own = tuple(checks)
        self._required = None if required is None else frozenset(required)
        self._budget_seconds = budget.total_seconds()
        self._fresh_seconds = fresh_for.total_seconds()
        self._probed: tuple[ExecutionContext, dict[str, _Resource]] | None = None
        self._draining = False

    def drain(self) -> None:
        """Be unready from now on, so that nobody sends more requests; call it before stopping."""
        self._draining = True

    async def report(self) -> HealthReport:
        """How everything is; takes the budget at most. Raises ``ConfigurationError`` where
        ``required`` names something that is not there."""
        if self._draining:
            return HealthReport(status="draining", resources={})
        resources = self._resources()
        if resources is None:
            return HealthReport(status="stopped", resources={})
        found = await asyncio.gather(*(each.health() for each in resources.values()))
        said = dict(zip(resources, found, strict=True))
        if all(each.status == "up" for each in found):
            return HealthReport(status="ok", resources=said)
        lost = any(each.required and each.status != "up" for each in found)
        return HealthReport(status="down" if lost else "degraded", resources=said)

    async def resource(self, name: str) -> ResourceHealth | None:
        """How this one is; None where there is no such resource."""
        found = (self._resources() or {}).get(name)
        return None if found is None else await found.health()

    def _resources(self) -> dict[str, _Resource] | None:
        """The resources of the running scope, None where none is running."""
        try:
            ctx = self._runtime.get_context()
        except ConfigurationError:
            return None
        if self._probed is None or self._probed[0] is not ctx:
            self._probed = ctx, self._gather(ctx)
        return self._probed[1]

    def _gather(self, ctx: ExecutionContext) -> dict[str, _Resource]:
        checks: dict[str, list[HealthCheck]] = {}
        for each in (*(check for _, check in ctx.registered(HealthCheck)), *self._own):
            checks.setdefault(each.name, []).append(each)
        unknown = sorted((self._required or frozenset()) - checks.keys())
        if unknown:
            raise ConfigurationError(
                f"health: required names {unknown[0]!r}; known are: "
                f"{', '.join(sorted(checks)) or 'none'}",
                name=unknown[0],
                known=checks,
            )
        return {
            name: _Resource(
                ctx,
                several,
                any(each.required for each in several)
                if self._required is None
                else name in self._required,
                self._budget_seconds,
                self._fresh_seconds,
            )
            for name, several in sorted(checks.items())
        }


class _Resource:
    """One resource: at most one question under way, and the last answer."""

    def __init__(
        self,
        ctx: ExecutionContext,
        checks: list[HealthCheck],
        required: bool,
        budget_seconds: float,
        fresh_seconds: float,
    ) -> None:
        self._ctx = ctx
        self._name = checks[0].name
        self._asks = list(dict.fromkeys(each.ask for each in checks))
        self._required = required
        self._budget_seconds = budget_seconds
        self._fresh_seconds = fresh_seconds
        self._question: asyncio.Task[ResourceHealth] | None = None
        self._last = ResourceHealth(status="up", required=required)
        self._fresh_until = 0.0

    async def health(self) -> ResourceHealth:
        """The last answer while it is fresh, or a new one; within the budget."""
        if monotonic() < self._fresh_until:
            return self._last
        question = self._question
        if question is None or question.done():
            question = self._question = self._ctx.spawn(
                self._asked(), name=f"forze-health-{self._name}", wait=False
            )
        # A caller that leaves, or a check that will not be cancelled, keeps nobody waiting.
        done, _ = await asyncio.wait({question}, timeout=self._budget_seconds)
        if done and not question.cancelled():
            return question.result()
        question.cancel()
        return self._learned("slow", None, f"no answer within {self._budget_seconds:g} s")

    async def _asked(self) -> ResourceHealth:
        began = monotonic()
        try:
            answers = [await ask() for ask in self._asks]
            sick = [each for each in answers if each is not None and not each.ok]
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            return self._learned("down", None, f"{type(error).__name__}: {error}")
        if sick:
            return self._learned("down", None, str(sick[0].error))
        return self._learned("up", round((monotonic() - began) * 1000, 3), None)

    def _learned(
        self, status: Verdict, latency_ms: float | None, why: str | None
    ) -> ResourceHealth:
        if (status == "up") != (self._last.status == "up"):
            if status == "up":
                logger.info("health: %s is back", self._name)
            else:
                logger.warning("health: %s is %s: %s", self._name, status, why)
        self._last = ResourceHealth(status=status, required=self._required, latency_ms=latency_ms)
        self._fresh_until = monotonic() + self._fresh_seconds
        return self._last


def attach_health(
    app: Starlette,
    runtime: ExecutionRuntime,
    *,
    live: str = "/livez",
    ready: str = "/readyz",
    checks: Iterable[HealthCheck] = (),
    required: Iterable[str] | None = None,
    budget: timedelta = BUDGET,
    fresh_for: timedelta = timedelta(seconds=1),
) -> HealthProbe:
    """Serve liveness at ``live``, readiness at ``ready`` and of one resource at ``ready/{name}``.

    Readiness is 200 while requests can be served (``ok`` or ``degraded``) and 503 otherwise, of
    one resource 200 while it is up. The routes are ahead of the application's own, and
    neither its dependencies nor its OpenAPI document know of them. The rest is
    :class:`HealthProbe`'s, which comes back so that it can be drained.
    """
    probe = HealthProbe(
        runtime, checks=checks, required=required, budget=budget, fresh_for=fresh_for
    )

    async def living(request: Request) -> Response:
        return JSONResponse({"status": "ok"}, headers=_NO_STORE)

    async def readiness(request: Request) -> Response:
        report = await probe.report()
        resources = {name: _shown(each) for name, each in report.resources.items()}
        return _answer(report.ready, {"status": report.status, "resources": resources})

    async def readiness_of_one(request: Request) -> Response:
        found = await probe.resource(request.path_params["name"])
        if found is None:
            return problem_response(HTTPProblem(404, "not-found", "There is no such resource."))
        return _answer(found.status == "up", _shown(found))

    routes = [
        Route(live, living, name="liveness"),
        Route(ready, readiness, name="readiness"),
        Route(f"{ready}/{{name}}", readiness_of_one, name="readiness_of_one"),
    ]
    app.router.routes[:0] = routes
    return probe


def _answer(well: bool, content: dict[str, Any]) -> Response:
    return JSONResponse(content, status_code=200 if well else 503, headers=_NO_STORE)


def _shown(health: ResourceHealth) -> dict[str, Any]:
    shown: dict[str, Any] = {"status": health.status, "required": health.required}
    if health.latency_ms is not None:
        shown["latency_ms"] = health.latency_ms
    return shown
