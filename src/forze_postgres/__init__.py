"""PostgreSQL for forze: documents and transactions."""

try:
    import asyncpg as _asyncpg  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"forze_postgres needs {error.name}, of an extra: pip install 'forze[postgres]'",
        name=error.name,
    ) from error

from forze_postgres.client import PostgresClient, PostgresClientDepKey, PostgresHealth
from forze_postgres.config import PostgresConfig
from forze_postgres.document import PostgresDocumentStore
from forze_postgres.document_config import PostgresDocumentConfig, PostgresReadOnlyDocumentConfig
from forze_postgres.fenced import check_fence, fenced_update
from forze_postgres.idempotency import PostgresIdempotencyConfig
from forze_postgres.idempotency_table import idempotency_table_sql
from forze_postgres.lifecycle import PostgresLifecycleModule, postgres_lifecycle_step
from forze_postgres.module import PostgresDepsModule
from forze_postgres.transaction import PostgresTransactionManager

__all__ = [
    "PostgresClient",
    "PostgresClientDepKey",
    "PostgresConfig",
    "PostgresDepsModule",
    "PostgresDocumentConfig",
    "PostgresDocumentStore",
    "PostgresHealth",
    "PostgresIdempotencyConfig",
    "PostgresLifecycleModule",
    "PostgresReadOnlyDocumentConfig",
    "PostgresTransactionManager",
    "check_fence",
    "fenced_update",
    "idempotency_table_sql",
    "postgres_lifecycle_step",
]
