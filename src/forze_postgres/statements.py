"""The statements of one document kind: built once, so that the driver prepares each once.

Placeholders come in a fixed order: the id (or the list of ids) first, then ``rev``, then the
values, the tenant last. Statements with filters have the tenant first, since what follows
differs from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence

from forze_postgres.sql import listed, quoted, uuid_list

TENANT = "tenant_id"
_ADVANCE = '"rev" = "rev" + 1, "last_update_at" = GREATEST(clock_timestamp(), "last_update_at")'


class Statements:
    """SQL text over one relation to read and one to write."""

    def __init__(
        self,
        *,
        read: tuple[str, str],
        write: tuple[str, str],
        reading: Sequence[str],
        writing: Sequence[str],
        tenant_aware: bool,
    ) -> None:
        self._read, self._write = quoted(*read), quoted(*write)
        self._tenant_aware = tenant_aware
        self._columns = listed(reading)
        one_relation = read == write
        self._returning = f" RETURNING {self._columns if one_relation else quoted('id')}"
        self._updates: dict[tuple[str, ...], str] = {}
        self._currents: dict[tuple[str, ...], str] = {}
        self.differs = "forze differs"
        self.inserted = tuple(name for name in writing if not (tenant_aware and name == TENANT))
        locked = self._columns if one_relation else quoted("id")

        select = f"SELECT {self._columns} FROM {self._read}"
        these = f'"id" = {uuid_list("$1")}' + self._and_tenant(2)
        one = '"id" = $1' + self._and_tenant(2)
        self.one = f"{select} WHERE {one}"
        self.many = f"{select} WHERE {these}"
        self.locked = f'SELECT {locked} FROM {self._write} WHERE {these} ORDER BY "id" FOR UPDATE'
        self.domain = f"SELECT {listed(writing)} FROM {self._write} WHERE {one} FOR UPDATE"
        self.touch = f"UPDATE {self._write} SET {_ADVANCE} WHERE {one}{self._returning}"
        self.delete = f'DELETE FROM {self._write} WHERE {these} RETURNING "id"'
        self.insert = self._insert()

    def update(self, names: tuple[str, ...]) -> str:
        """``$1`` id, ``$2`` rev, then the values of ``names``: write if any differs."""
        sql = self._updates.get(names)
        if sql is None:
            places = [f"${number}" for number in range(3, 3 + len(names))]
            where = '"id" = $1 AND "rev" = $2' + self._and_tenant(3 + len(names))
            sql = self._updates[names] = (
                f"UPDATE {self._write} SET {_assigned(names, places)}, {_ADVANCE} "
                f"WHERE {where} AND {_distinct(names, places)}{self._returning}"
            )
        return sql

    def current(self, names: tuple[str, ...]) -> str:
        """``$1`` id, then the values of ``names``: the revision now, and whether any differs."""
        sql = self._currents.get(names)
        if sql is None:
            places = [f"${number}" for number in range(2, 2 + len(names))]
            differs = _distinct(names, places) if names else "FALSE"
            where = '"id" = $1' + self._and_tenant(2 + len(names))
            sql = self._currents[names] = (
                f'SELECT "rev", {differs} AS {quoted(self.differs)} FROM {self._write} '
                f"WHERE {where}"
            )
        return sql

    def update_matching(
        self, names: tuple[str, ...], places: Sequence[str], terms: Sequence[str]
    ) -> str:
        """Write where a row matches ``terms`` and differs."""
        where = self._where([*terms, _distinct(names, places)])
        return (
            f'UPDATE {self._write} SET {_assigned(names, places)}, {_ADVANCE}{where} RETURNING "id"'
        )

    def delete_matching(self, terms: Sequence[str]) -> str:
        """Remove what matches ``terms``."""
        return f'DELETE FROM {self._write}{self._where(terms)} RETURNING "id"'

    def page(self, terms: Sequence[str], order: str, limit: str) -> str:
        """What matches ``terms``, in order."""
        return (
            f"SELECT {self._columns} FROM {self._read}{self._where(terms)} "
            f"ORDER BY {order} LIMIT {limit}"
        )

    def ids(self, terms: Sequence[str], order: str, limit: str) -> str:
        """The ids of what matches ``terms``, in order."""
        return f'SELECT "id" FROM {self._read}{self._where(terms)} ORDER BY {order} LIMIT {limit}'

    def count(self, terms: Sequence[str]) -> str:
        """How many match ``terms``."""
        return f"SELECT count(*) FROM {self._read}{self._where(terms)}"

    def _insert(self) -> str:
        names = (*self.inserted, TENANT) if self._tenant_aware else self.inserted
        places = ", ".join(f"${number}" for number in range(1, len(names) + 1))
        return f"INSERT INTO {self._write} ({listed(names)}) VALUES ({places}){self._returning}"

    def _and_tenant(self, number: int) -> str:
        return f" AND {quoted(TENANT)} = ${number}" if self._tenant_aware else ""

    def _where(self, terms: Sequence[str]) -> str:
        confined = [f"{quoted(TENANT)} = $1", *terms] if self._tenant_aware else terms
        return f" WHERE {' AND '.join(confined)}" if confined else ""


def _assigned(names: Sequence[str], places: Sequence[str]) -> str:
    pairs = zip(names, places, strict=True)
    return ", ".join(f"{quoted(name)} = {place}" for name, place in pairs)


def _distinct(names: Sequence[str], places: Sequence[str]) -> str:
    return f"ROW({listed(names)}) IS DISTINCT FROM ROW({', '.join(places)})"
