"""Connects the client before the first request and closes it after the last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from forze.application.execution import ExecutionContext, LifecycleStep
from forze_postgres.client import PostgresClient, PostgresClientDepKey
from forze_postgres.config import PostgresConfig


def postgres_lifecycle_step(
    *,
    dsn: str,
    config: PostgresConfig | Mapping[str, Any] | None = None,
    client: PostgresClient | None = None,
    id: str = "postgres",
) -> LifecycleStep:
    """A step that connects ``client`` to ``dsn``; without one, the client of the dependencies."""

    def chosen(ctx: ExecutionContext) -> PostgresClient:
        return client if client is not None else ctx.provide(PostgresClientDepKey)

    async def startup(ctx: ExecutionContext) -> None:
        await chosen(ctx).connect(dsn, config)

    async def shutdown(ctx: ExecutionContext) -> None:
        await chosen(ctx).close()

    return LifecycleStep(id=id, startup=startup, shutdown=shutdown)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresLifecycleModule:
    """:func:`postgres_lifecycle_step` as a module for ``LifecyclePlan.from_modules``."""

    client: PostgresClient
    dsn: str
    config: PostgresConfig | Mapping[str, Any] | None = None

    def __call__(self) -> Iterable[LifecycleStep]:
        """The one step."""
        return (postgres_lifecycle_step(dsn=self.dsn, config=self.config, client=self.client),)
