"""The table of idempotency records: how it is made, what it must be like, its statements."""

from __future__ import annotations

from forze_postgres.catalog import Name, Shape, shown, unfilled
from forze_postgres.document_config import Relation
from forze_postgres.sql import quoted

_COLUMNS = {
    "record": "text",
    "state": "text",
    "payload_hash": "text",
    "owner": "text",
    "generation": "int8",
    "lease_until": "timestamptz",
    "expires_at": "timestamptz",
    "status_code": "int4",
    "head": "jsonb",
    "body": "bytea",
}
_SPELLED = {"int8": "bigint", "int4": "integer"}
PURGED_ROWS = 1000
"""How many expired rows are removed at once."""


def idempotency_table_sql(table: Relation) -> str:
    """The statements that make the table of a :class:`PostgresIdempotencyConfig`."""
    name = quoted(*table)
    return f"""\
CREATE TABLE {name} (
    record text PRIMARY KEY,
    state text NOT NULL,
    payload_hash text NOT NULL,
    owner text NOT NULL,
    generation bigint NOT NULL,
    lease_until timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    status_code integer,
    head jsonb,
    body bytea
);
CREATE INDEX ON {name} (expires_at);
"""


class Statements:
    """SQL over one table. ``$1`` is the record; times are the database's own.

    ``claim`` makes a row, or takes the one that is there if it may, and says what was there: it
    reads the row as it is when the statement begins, and takes it only if it still is so, and
    not locked. An INSERT for a row that is there would wait for whoever has it locked.
    """

    def __init__(self, relation: Relation) -> None:
        table = quoted(*relation)
        alive = "expires_at > clock_timestamp()"
        held = f"record = $1 AND owner = $2 AND generation = $3 AND {alive}"
        claimable = (
            f"(state = 'free' OR NOT {alive} OR (state = 'pending' AND payload_hash = $2 "
            "AND (owner = $3 OR lease_until <= clock_timestamp())))"
        )
        self.claim = (
            f"WITH seen AS (SELECT *, {alive} AS alive, "
            "CAST(ceil(extract(epoch FROM lease_until - clock_timestamp()) * 1000) AS bigint) "
            f"AS lease_left_ms FROM {table} WHERE record = $1), "
            f"unlocked AS MATERIALIZED (SELECT record FROM {table} WHERE record = $1 "
            f"AND {claimable} FOR UPDATE SKIP LOCKED), "
            f"taken AS (UPDATE {table} SET state = 'pending', payload_hash = $2, owner = $3, "
            "generation = CASE WHEN state = 'pending' AND owner = $3 THEN generation "
            "ELSE generation + 1 END, lease_until = clock_timestamp() + $4::interval, "
            "expires_at = clock_timestamp() + $5::interval, "
            "status_code = NULL, head = NULL, body = NULL "
            f"WHERE record IN (SELECT record FROM unlocked) AND {claimable} "
            "RETURNING generation), "
            f"made AS (INSERT INTO {table} (record, state, payload_hash, owner, generation, "
            "lease_until, expires_at) SELECT $1, 'pending', $2, $3, 1, "
            "clock_timestamp() + $4::interval, clock_timestamp() + $5::interval "
            "WHERE NOT EXISTS (SELECT FROM seen) ON CONFLICT (record) DO NOTHING "
            "RETURNING generation) "
            "SELECT seen.*, taken.generation AS taken, made.generation AS made FROM (SELECT) one "
            "LEFT JOIN seen ON true LEFT JOIN taken ON true LEFT JOIN made ON true"
        )
        self.beat = (
            f"UPDATE {table} SET lease_until = clock_timestamp() + $4::interval, "
            f"expires_at = clock_timestamp() + $5::interval WHERE {held} AND state = 'pending' "
            "RETURNING record"
        )
        self.complete = (
            f"WITH done AS (UPDATE {table} SET state = 'completed', status_code = $5, "
            "head = $6::jsonb, body = $7, expires_at = clock_timestamp() + $4::interval "
            f"WHERE {held} AND state = 'pending' RETURNING record) "
            f"SELECT record FROM done UNION ALL SELECT record FROM {table} "
            f"WHERE {held} AND state = 'completed'"
        )
        self.release = (
            f"UPDATE {table} SET state = 'free', owner = '', payload_hash = '', "
            f"expires_at = clock_timestamp() + $4::interval WHERE record = $1 AND owner = $2 "
            f"AND ($3::bigint = 0 OR generation = $3) AND {alive} AND state = 'pending' "
            "RETURNING record"
        )
        self.purge = (
            f"DELETE FROM {table} WHERE record IN (SELECT record FROM {table} "
            f"WHERE expires_at < clock_timestamp() LIMIT {PURGED_ROWS} FOR UPDATE SKIP LOCKED) "
            "RETURNING record"
        )


def problems(name: Name, shape: Shape | None) -> list[str]:
    """What is wrong with the table that was found, if anything is."""
    if shape is None:
        return [f"{shown(name)} does not exist"]
    if shape.kind not in ("r", "p"):
        return [f"{shape.name} is not a table"]
    wrong: list[str] = []
    for column, expected in _COLUMNS.items():
        found = shape.columns.get(column)
        wanted = _SPELLED.get(expected, expected)
        if found is None:
            wrong.append(f"{shape.name}.{column} is missing; expected {wanted}")
        elif found.type != expected:
            wrong.append(f"{shape.name}.{column} is {found.shown}; expected {wanted}")
    if frozenset({"record"}) not in shape.keys:
        wrong.append(f"{shape.name}.record is not unique; expected PRIMARY KEY")
    return wrong + unfilled(shape, _COLUMNS)
