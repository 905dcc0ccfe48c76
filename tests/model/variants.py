"""The settings under which the protocol as shipped is explored.

Faults that make no states of their own possible are switched on everywhere: eviction in any
state, lapse of every deadline, death of writers and readers at any point, in any number.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.l1 import Shipped
from tests.model.state import Setting


@dataclass(frozen=True, slots=True)
class Variant:
    """A setting, and what is wrong in it: nothing, unless it leaves the assumptions."""

    name: str
    setting: Setting
    expected: str | None = None  # the first word of what is wrong
    full: bool = False  # takes minutes: only with ``--full``


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
    Variant(
        "L1, push: 2 readers, remote writer, refresh, late commands, link lost",
        Setting(
            readers=2,
            writers=1,
            l1=Shipped(),
            link=True,
            nothing=True,
            refresh=True,
            unanswered=True,
            strays=True,
        ),
    ),
    Variant(
        "L1, push: 3 readers, remote writer, evictions only",
        Setting(writers=1, l1=Shipped(), lapse=False, crash=False),
    ),
    Variant(
        "L1, push: 2 readers, writer of the process, link lost",
        Setting(readers=2, writers=1, l1=Shipped(), local=1, link=True),
    ),
    Variant(
        "L1, push: 1 reader, a remote and a local writer, evictions only",
        Setting(readers=1, l1=Shipped(), local=1, lapse=False, crash=False),
    ),
    Variant(
        "L1, push: 2 readers, remote writer, own changes pushed as well",
        Setting(readers=2, writers=1, l1=Shipped(), link=True, echo=True),
    ),
    Variant(
        "L1, push: a reader here and one elsewhere, remote writer",
        Setting(readers=2, writers=1, l1=Shipped(), elsewhere=1),
    ),
    Variant(
        "L1, push: failover, 1 reader, remote writer, refresh",
        Setting(readers=1, writers=1, l1=Shipped(), failover=True, refresh=True),
    ),
    Variant(
        "L1, ttl: 1 reader, a remote and a local writer",
        Setting(readers=1, l1=Shipped(), local=1, pushes=False),
    ),
    Variant(
        "L1, push: 3 readers, remote writer, refresh, link lost",
        Setting(writers=1, l1=Shipped(), refresh=True, link=True, cap=6_000_000),
        full=True,
    ),
    Variant(
        "L1, push: a reader here and one elsewhere, remote writer, refresh, link lost",
        Setting(
            readers=2,
            writers=1,
            l1=Shipped(),
            elsewhere=1,
            nothing=True,
            refresh=True,
            link=True,
        ),
        full=True,
    ),
    Variant(
        "L1, push: 3 readers, writer of the process",
        Setting(writers=1, l1=Shipped(), local=1),
        full=True,
    ),
    Variant(
        "L1, push: 1 reader, a remote and a local writer, refresh",
        Setting(readers=1, l1=Shipped(), local=1, refresh=True),
        full=True,
    ),
    Variant(
        "L1, push: failover, 2 readers, remote writer, refresh",
        Setting(readers=2, writers=1, l1=Shipped(), failover=True, refresh=True),
        full=True,
    ),
    Variant(
        "L1, ttl: 2 readers, a remote and a local writer, refresh",
        Setting(readers=2, l1=Shipped(), local=1, pushes=False, refresh=True),
        full=True,
    ),
)
