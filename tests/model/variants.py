"""The settings under which the protocol as shipped is explored.

Faults that make no states of their own possible are switched on everywhere: eviction in any
state, lapse of every deadline, death of writers and readers at any point, in any number.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.state import Setting


@dataclass(frozen=True, slots=True)
class Variant:
    """A setting, and what is wrong in it: nothing, unless it leaves the assumptions."""

    name: str
    setting: Setting
    expected: str | None = None  # the first word of what is wrong


VARIANTS = (
    Variant(
        "3 readers 2 writers, all faults, joins, refresh, late commands",
        Setting(
            nothing=True, refresh=True, join=True, tokenless=True, unanswered=True, strays=True
        ),
    ),
    Variant(
        "2 readers 2 writers, COMMIT outlasts its deadline (documented)",
        Setting(readers=2, nothing=True, refresh=True, join=True, slow=True),
    ),
    Variant(
        "3 readers 1 writer, a deploy changes the schema",
        Setting(writers=1, nothing=True, refresh=True, join=True, unanswered=True, deploy=True),
    ),
    Variant(
        "2 readers 2 writers, a deploy changes the schema",
        Setting(readers=2, nothing=True, refresh=True, join=True, deploy=True),
    ),
    Variant(
        "2 readers 2 writers, values stored directly",
        Setting(readers=2, nothing=True, refresh=True, join=True, direct=True),
    ),
    Variant(
        "failover, 3 readers 1 writer, joins, refresh, late commands",
        Setting(
            writers=1,
            failover=True,
            nothing=True,
            refresh=True,
            join=True,
            tokenless=True,
            unanswered=True,
            strays=True,
        ),
    ),
    Variant(
        "failover, 2 readers 2 writers, joins, refresh",
        Setting(readers=2, failover=True, nothing=True, refresh=True, join=True),
    ),
    Variant(
        "failover, 3 readers 2 writers, joins",
        Setting(failover=True, join=True),
    ),
    Variant(
        "outside: a connection survives the failover",
        Setting(readers=1, writers=1, failover=True, survives=True),
        expected="P",
    ),
)
