"""How an application is put together and run: dependencies, lifecycle, runtime, context.

What not every application uses is loaded when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from forze.application.contracts.deps import DepKey, Resolver
from forze.application.execution.context import ExecutionContext
from forze.application.execution.deps import Deps, DepsModule, DepsPlan, DepsRegistry
from forze.application.execution.lifecycle import LifecycleModule, LifecyclePlan, LifecycleStep
from forze.application.execution.runtime import ExecutionRuntime
from forze.application.integrations.document.telemetry import TelemetrySpec

if TYPE_CHECKING:
    from forze.application.execution.portal import Portal
    from forze.application.execution.resilience import ResilienceDepsModule

__all__ = [
    "DepKey",
    "Deps",
    "DepsModule",
    "DepsPlan",
    "DepsRegistry",
    "ExecutionContext",
    "ExecutionRuntime",
    "LifecycleModule",
    "LifecyclePlan",
    "LifecycleStep",
    "Portal",
    "ResilienceDepsModule",
    "Resolver",
    "TelemetrySpec",
]


def __getattr__(name: str) -> Any:
    if name == "Portal":
        from forze.application.execution.portal import Portal

        return Portal
    if name == "ResilienceDepsModule":
        from forze.application.execution.resilience import ResilienceDepsModule

        return ResilienceDepsModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
