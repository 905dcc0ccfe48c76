"""How an application is put together and run: dependencies, lifecycle, runtime, context."""

from forze.application.contracts.deps import DepKey, Resolver
from forze.application.execution.context import ExecutionContext
from forze.application.execution.deps import Deps, DepsModule, DepsPlan, DepsRegistry
from forze.application.execution.lifecycle import LifecycleModule, LifecyclePlan, LifecycleStep
from forze.application.execution.runtime import ExecutionRuntime
from forze.application.integrations.document.telemetry import TelemetrySpec

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
    "Resolver",
    "TelemetrySpec",
]
