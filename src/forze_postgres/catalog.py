"""What the database says of relations: columns, types, keys, and what a view is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import asyncpg

from forze.application.integrations.document.fields import Field, Kind
from forze_postgres.columns import TYPES

Name = tuple[str, str]
"""Schema and relation."""

SHAPES_SQL = """
WITH RECURSIVE root(oid, base) AS (
    SELECT oid, oid FROM pg_catalog.pg_type WHERE typtype <> 'd'
    UNION ALL
    SELECT d.oid, root.base FROM pg_catalog.pg_type d JOIN root ON d.typbasetype = root.oid
    WHERE d.typtype = 'd'
), wanted AS (
    SELECT w.schema, w.relation, c.oid, c.relkind
    FROM unnest($1::text[], $2::text[]) AS w(schema, relation)
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.relation
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
), made_of(start, oid) AS (
    SELECT oid, oid FROM wanted WHERE relkind IN ('v', 'm')
    UNION
    SELECT m.start, d.refobjid
    FROM made_of m
    JOIN pg_catalog.pg_rewrite r ON r.ev_class = m.oid
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass
        AND d.objid = r.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
)
SELECT w.schema, w.relation, w.relkind::text AS kind,
    (SELECT json_agg(json_build_object(
            'name', a.attname, 'not_null', a.attnotnull,
            'type', CASE WHEN t.typtype <> 'e' THEN t.typname
                         WHEN a.atttypid = t.oid THEN 'enum' ELSE 'domain over an enum' END,
            'shown', format_type(a.atttypid, a.atttypmod),
            'filled', a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> '',
            'computed', a.attgenerated <> '' OR a.attidentity = 'a'))
     FROM pg_catalog.pg_attribute a
     JOIN root ON root.oid = a.atttypid JOIN pg_catalog.pg_type t ON t.oid = root.base
     WHERE a.attrelid = w.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
    (SELECT json_agg((SELECT json_agg(a.attname ORDER BY a.attname)
            FROM pg_catalog.pg_attribute a WHERE a.attrelid = w.oid
            AND a.attnum = ANY((i.indkey::int2[])[0:i.indnkeyatts - 1])))
     FROM pg_catalog.pg_index i
     WHERE i.indrelid = w.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
        AND i.indpred IS NULL AND i.indexprs IS NULL) AS keys,
    (SELECT json_agg(json_build_array(n.nspname, c.relname) ORDER BY n.nspname, c.relname)
     FROM made_of m JOIN pg_catalog.pg_class c ON c.oid = m.oid
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE m.start = w.oid AND m.oid <> w.oid AND c.relkind IN ('r', 'p', 'f', 'm')) AS made_of
FROM wanted w
"""


class Column(NamedTuple):
    """One column: its base type (``enum`` for any enum) and how the database spells it.

    A domain over an enum is its own type here: PostgreSQL cannot compare it with a parameter.
    """

    type: str
    shown: str
    not_null: bool
    filled: bool
    """Whether the database provides a value when none is given."""
    computed: bool
    """Whether the database refuses a given value."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A relation as it is."""

    name: str
    kind: str
    columns: dict[str, Column]
    keys: tuple[frozenset[str], ...]
    made_of: frozenset[str]
    """The tables behind a view, through any number of views."""


def shown(name: Name) -> str:
    """``schema.relation``."""
    return ".".join(name)


def shapes(rows: Iterable[asyncpg.Record]) -> dict[Name, Shape]:
    """The relations that :data:`SHAPES_SQL` found."""
    found: dict[Name, Shape] = {}
    for row in rows:
        name = (row["schema"], row["relation"])
        columns = {each.pop("name"): Column(**each) for each in json.loads(row["columns"] or "[]")}
        keys = tuple(frozenset(each) for each in json.loads(row["keys"] or "[]") if each)
        made_of = frozenset(
            shown((each[0], each[1])) for each in json.loads(row["made_of"] or "[]")
        )
        found[name] = Shape(shown(name), row["kind"], columns, keys, made_of)
    return found


def misfits(shape: Shape, fields: Iterable[Field], *, reading: bool) -> list[str]:
    """What keeps ``fields`` from living in the relation, each with its full name."""
    wrong: list[str] = []
    for field in fields:
        column = shape.columns.get(field.name)
        expected = TYPES[field.kind] + (("json",) if reading and field.kind is Kind.JSON else ())
        where = f"{shape.name}.{field.name}"
        if column is None:
            wrong.append(f"{where} is missing; expected {_spelled(expected)}")
        elif column.type not in expected:
            wrong.append(f"{where} is {column.shown}; expected {_spelled(expected)}")
        elif column.computed and not reading:
            wrong.append(f"{where} is computed by the database and cannot be written")
    return wrong


def unfilled(shape: Shape, written: Iterable[str]) -> list[str]:
    """Columns that every insert would have to fill and none would."""
    return [
        f"{shape.name}.{name} is NOT NULL without a default, and no field of the model fills it; "
        "expected a default, or a field"
        for name, column in shape.columns.items()
        if column.not_null and not column.filled and name not in set(written)
    ]


_SPELLINGS = {
    "int8": "bigint",
    "int4": "integer",
    "int2": "smallint",
    "bool": "boolean",
    "float8": "double precision",
    "float4": "real",
    "enum": "an enum",
}


def _spelled(types: Sequence[str]) -> str:
    return " or ".join(_SPELLINGS.get(each, each) for each in types)
