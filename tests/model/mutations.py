"""Wrong protocols, each of which the checker must catch.

A mutation replaces shipped functions by the wrong ones below (one, or two that only make
sense together), or a method of the shipped tier, or lets an agent make a
:class:`~tests.model.state.Slip`. Its setting is a small one in which the mistake shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tests.model.l1 import Shipped
from tests.model.state import Setting, Slip, Transitions, generation

from forze.application.integrations.document import protocol
from forze.application.integrations.document.l1.tier import Key, Tier
from forze.application.integrations.document.protocol import (
    INTENT_MS,
    Intent,
    Lease,
    Pointer,
    Read,
    Value,
    lower,
    prune,
)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A wrong protocol, and what the checker should say about it."""

    name: str
    setting: Setting
    expected: str  # the first word of what is wrong


def blind_fill(
    pointer: Pointer, tag: str, token: str, version: str, now: int
) -> tuple[Pointer, bool]:
    return Value(tag, version), True


def version_compare_fill(
    pointer: Pointer, tag: str, token: str, version: str, now: int
) -> tuple[Pointer, bool]:
    match prune(pointer, now):
        case Intent():
            return pointer, False
        case Value(version=current) if not lower(current, version):
            return pointer, False
    return Value(tag, version), True


def fill_under_any_generation(
    pointer: Pointer, tag: str, token: str, version: str, now: int
) -> tuple[Pointer, bool]:
    held = prune(pointer, now)
    if isinstance(held, Lease) and held.token == token:
        return Value(tag, version), True
    return protocol.fill(pointer, tag, token, version, now)


def fill_any_lease(
    pointer: Pointer, tag: str, token: str, version: str, now: int
) -> tuple[Pointer, bool]:
    held = prune(pointer, now)
    if isinstance(held, Lease) and held.tag == tag:
        return Value(tag, version), True
    return protocol.fill(pointer, tag, token, version, now)


def refresh_any_value(
    pointer: Pointer, tag: str, token: str, version: str, now: int
) -> tuple[Pointer, bool]:
    held = prune(pointer, now)
    if isinstance(held, Value) and held.tag == tag:
        return Value(tag, version), True
    return protocol.fill(pointer, tag, token, version, now)


def read_foreign_value(
    pointer: Pointer, tag: str, token: str | None, until: int, now: int
) -> tuple[Pointer, Read]:
    if isinstance(pointer, Value):
        return prune(pointer, now), Read.HIT
    return protocol.read(pointer, tag, token, until, now)


def read_intent_as_absent(
    pointer: Pointer, tag: str, token: str | None, until: int, now: int
) -> tuple[Pointer, Read]:
    kept = None if isinstance(pointer, Intent) else pointer
    return protocol.read(kept, tag, token, until, now)


def read_intent_as_absent_after_failover(
    pointer: Pointer, tag: str, token: str | None, until: int, now: int
) -> tuple[Pointer, Read]:
    if generation(tag) == 0:
        return protocol.read(pointer, tag, token, until, now)
    return read_intent_as_absent(pointer, tag, token, until, now)


def renew_revives(pointer: Pointer, tag: str, token: str, until: int, now: int) -> Pointer:
    return Lease(tag, token, until)


def renew_revives_if_absent(
    pointer: Pointer, tag: str, token: str, until: int, now: int
) -> Pointer:
    if prune(pointer, now) is None:
        return Lease(tag, token, until)
    return protocol.renew(pointer, tag, token, until, now)


def renew_revives_refresh(pointer: Pointer, tag: str, token: str, until: int, now: int) -> Pointer:
    elected, _ = protocol.elect(
        protocol.renew(pointer, tag, token, until, now), tag, token, until, now
    )
    return elected


def give_back_nothing(pointer: Pointer, tag: str, token: str, now: int) -> Pointer:
    return prune(pointer, now)


def give_back_everything(pointer: Pointer, tag: str, token: str, now: int) -> Pointer:
    return None


def elect_by_lease(
    pointer: Pointer, tag: str, token: str, until: int, now: int
) -> tuple[Pointer, bool]:
    elected, won = protocol.elect(pointer, tag, token, until, now)
    return (Lease(tag, token, until), True) if won else (elected, False)


def elect_over_absent(
    pointer: Pointer, tag: str, token: str, until: int, now: int
) -> tuple[Pointer, bool]:
    if isinstance(prune(pointer, now), Intent):
        return Lease(tag, token, until), True
    return protocol.elect(pointer, tag, token, until, now)


def intend_keeps_lease(pointer: Pointer, write_id: str, deadline: int, now: int) -> Pointer:
    if isinstance(prune(pointer, now), Lease):
        return prune(pointer, now)
    return protocol.intend(pointer, write_id, deadline, now)


def intend_keeps_value(pointer: Pointer, write_id: str, deadline: int, now: int) -> Pointer:
    if isinstance(prune(pointer, now), Value):
        return prune(pointer, now)
    return protocol.intend(pointer, write_id, deadline, now)


def intend_alone(pointer: Pointer, write_id: str, deadline: int, now: int) -> Pointer:
    return Intent(((write_id, deadline),))


def intend_counts(pointer: Pointer, write_id: str, deadline: int, now: int) -> Pointer:
    """Counts every renewal as one more write (here up to two, which is enough)."""
    held = prune(pointer, now)
    ids = held.ids if isinstance(held, Intent) else ()
    if ids.count((write_id, deadline)) > 1:
        return held
    return Intent((*ids, (write_id, deadline)))


def done_uncounts(pointer: Pointer, write_id: str, now: int) -> Pointer:
    held = prune(pointer, now)
    if not isinstance(held, Intent):
        return None
    ids = list(held.ids)
    mine = next((each for each in ids if each[0] == write_id), None)
    if mine is not None:
        ids.remove(mine)
    return Intent(tuple(ids)) if ids else None


def done_deletes_others(pointer: Pointer, write_id: str, now: int) -> Pointer:
    return None


def done_trusts_its_intent(pointer: Pointer, write_id: str, now: int) -> Pointer:
    if not isinstance(prune(pointer, now), Intent):
        return prune(pointer, now)
    return protocol.done(pointer, write_id, now)


def done_spares_leases(pointer: Pointer, write_id: str, now: int) -> Pointer:
    if isinstance(prune(pointer, now), Lease):
        return prune(pointer, now)
    return protocol.done(pointer, write_id, now)


def put_over_intent(pointer: Pointer, tag: str, version: str, now: int) -> tuple[Pointer, bool]:
    if isinstance(prune(pointer, now), Intent):
        return Value(tag, version), True
    return protocol.put(pointer, tag, version, now)


def put_lowers(pointer: Pointer, tag: str, version: str, now: int) -> tuple[Pointer, bool]:
    if isinstance(prune(pointer, now), Value):
        return Value(tag, version), True
    return protocol.put(pointer, tag, version, now)


def prune_everything(pointer: Pointer, now: int) -> Pointer:
    """Drops all ids as soon as one has lapsed."""
    if isinstance(pointer, Intent) and any(until <= now for _, until in pointer.ids):
        return None
    return prune(pointer, now)


def commit_at_any_time(intended_at: float, now: float) -> bool:
    return True


def commit_without_margin(intended_at: float, now: float) -> bool:
    return now - intended_at < INTENT_MS / 1000


class FillsWithoutMark(Tier[Any]):
    def take(self, key: Key, mark: float, document: Any, body: bytes) -> bool:
        self.store.set(key, document)
        return True


class SharesMark(Tier[Any]):
    """A mark that stands is everybody's."""

    def take(self, key: Key, mark: float, document: Any, body: bytes) -> bool:
        return super().take(key, self._marks.get(key, mark), document, body)


class DeafWhileReading(Tier[Any]):
    def drop(self, addresses: Iterable[str], *, pushed: bool = False) -> None:
        if not (pushed and self._marks):
            super().drop(addresses, pushed=pushed)


class DropsEntryOnly(Tier[Any]):
    """What is dropped is the entry; whoever asks for it may still keep its answer."""

    def forget(self, key: Key) -> None:
        self.store.invalidate(key)


class DropsMarkOnly(Tier[Any]):
    def forget(self, key: Key) -> None:
        self._marks.pop(key, None)


class FlushesEntriesOnly(Tier[Any]):
    def flush(self) -> None:
        self.store.clear()


class ServesUntrusted(Tier[Any]):
    """Neither looks at the trust it has, nor flushes what it holds."""

    def get(self, key: Key) -> Any:
        return self.store.get(key)

    def flush(self) -> None:
        pass


SMALL = Setting(readers=2, writers=2)
LOADS = replace(SMALL, nothing=True)
REFRESH = replace(SMALL, refresh=True)
JOIN = Setting(readers=3, writers=1, join=True)
FAILOVER = Setting(readers=2, writers=1, failover=True)
DIRECT = replace(SMALL, direct=True)
DEPLOY = replace(SMALL, deploy=True)
TIER = Setting(readers=2, writers=1, l1=Shipped())
CROWD = replace(TIER, readers=3, lapse=False, crash=False)
LINK = replace(TIER, link=True)
LOCAL = replace(TIER, local=1)
MIXED = Setting(readers=1, writers=2, l1=Shipped(), local=1, lapse=False, crash=False)
ALONE = replace(LOCAL, pushes=False)


def _wrong(setting: Setting, *slips: Slip, **functions: object) -> Setting:
    transitions = replace(Transitions(), **functions)  # type: ignore[arg-type]  # by name
    return replace(setting, transitions=transitions, slips=frozenset(slips))


def _with(setting: Setting, tier: type[Tier[Any]]) -> Setting:
    return replace(setting, l1=Shipped(tier))


MUTATIONS = (
    Mutation("blind fill", _wrong(SMALL, fill=blind_fill), "STALE"),
    Mutation("version-compare fill", _wrong(SMALL, fill=version_compare_fill), "STALE"),
    Mutation("fill of somebody else's lease", _wrong(SMALL, fill=fill_any_lease), "STALE"),
    Mutation("refresh without its token", _wrong(REFRESH, fill=refresh_any_value), "HIDDEN"),
    Mutation(
        "fill under another generation", _wrong(FAILOVER, fill=fill_under_any_generation), "STALE"
    ),
    Mutation("foreign value read", _wrong(FAILOVER, read=read_foreign_value), "P"),
    Mutation("foreign schema read", _wrong(DEPLOY, read=read_foreign_value), "FOREIGN"),
    Mutation(
        "foreign-tag INTENT taken as absent",
        _wrong(FAILOVER, read=read_intent_as_absent_after_failover),
        "STALE",
    ),
    Mutation("INTENT taken as absent", _wrong(SMALL, read=read_intent_as_absent), "STALE"),
    Mutation("renewal takes the pointer back", _wrong(SMALL, renew=renew_revives), "HIDDEN"),
    Mutation("renewal revives a lost lease", _wrong(SMALL, renew=renew_revives_if_absent), "STALE"),
    Mutation(
        "renewal revives a lost right to refresh",
        _wrong(REFRESH, renew=renew_revives_refresh),
        "RESIDUE",
    ),
    Mutation("lease kept after not-found", _wrong(LOADS, give_back=give_back_nothing), "RESIDUE"),
    Mutation(
        "give back without its token", _wrong(LOADS, give_back=give_back_everything), "HIDDEN"
    ),
    Mutation("refresh hides the value", _wrong(REFRESH, elect=elect_by_lease), "HIDDEN"),
    Mutation("refresh elected over an intent", _wrong(REFRESH, elect=elect_over_absent), "STALE"),
    Mutation("intent keeps the lease", _wrong(SMALL, intend=intend_keeps_lease), "STALE"),
    Mutation("intent keeps the value", _wrong(SMALL, intend=intend_keeps_value), "STALE"),
    Mutation("intent forgets other writers", _wrong(SMALL, intend=intend_alone), "STALE"),
    Mutation(
        "second intent with the same id counted twice",
        _wrong(SMALL, intend=intend_counts, done=done_uncounts),
        "RESIDUE",
    ),
    Mutation(
        "done deletes another writer's intent", _wrong(SMALL, done=done_deletes_others), "STALE"
    ),
    Mutation("done trusts a lost intent", _wrong(SMALL, done=done_trusts_its_intent), "STALE"),
    Mutation(
        "done spares a lease (fill after kill)", _wrong(SMALL, done=done_spares_leases), "STALE"
    ),
    Mutation("a lapse takes every id along", _wrong(SMALL, prune=prune_everything), "STALE"),
    Mutation("set_versioned over INTENT", _wrong(DIRECT, put=put_over_intent), "OVERWRITTEN"),
    Mutation("set_versioned lowers the version", _wrong(DIRECT, put=put_lowers), "LOWERED"),
    Mutation(
        "commit without deadline check", _wrong(SMALL, may_commit=commit_at_any_time), "STALE"
    ),
    Mutation("commit without margin", _wrong(SMALL, may_commit=commit_without_margin), "STALE"),
    *(
        Mutation(slip.value, _wrong(setting, slip), expected)
        for slip, setting, expected in (
            (Slip.WRITES_WITHOUT_INTENT, SMALL, "STALE"),
            (Slip.UNANSWERED_RENEWAL_COUNTS, SMALL, "STALE"),
            (Slip.ACK_BEFORE_DONE, SMALL, "P"),
            (Slip.DONE_AFTER_UNKNOWN_COMMIT, SMALL, "STALE"),
            (Slip.ROLLBACK_LEAVES_INTENT, SMALL, "RESIDUE"),
            (Slip.FILLS_FROM_SNAPSHOT, SMALL, "STALE"),
            (Slip.TRANSACTION_READER_FILLS, SMALL, "STALE"),
            (Slip.JOINS_ANY_FLIGHT, JOIN, "P"),
            (Slip.JOINS_AFTER_FILL_SENT, JOIN, "P"),
            (Slip.TRUSTS_REFUSED_FILL, JOIN, "P"),
            (Slip.NOTHING_FOR_EVERYONE, replace(JOIN, nothing=True), "P"),
            (Slip.FILLS_WITH_OLD_TAG, replace(FAILOVER, readers=3, join=True), "P"),
            (Slip.REFUSED_FILL_KEPT, TIER, "KEPT"),
            (Slip.KEEPS_AT_LEASE, TIER, "KEPT"),
            (Slip.KEEPS_OVER_OWN_WRITES, LOCAL, "KEPT"),
            (Slip.KEEPS_AT_ANSWER, LOCAL, "KEPT"),
            (Slip.KEEPS_AT_RENEWAL, MIXED, "KEPT"),
            (Slip.NO_FLUSH_ON_RETURN, LINK, "KEPT"),
            (Slip.TRUSTS_LOST_LINK, LINK, "UNTRUSTED"),
        )
    ),
    Mutation("L1 fill without placeholder", _with(TIER, FillsWithoutMark), "KEPT"),
    Mutation("placeholder shared between attempts", _with(CROWD, SharesMark), "KEPT"),
    Mutation("push ignored while a read is in flight", _with(TIER, DeafWhileReading), "KEPT"),
    Mutation("a drop leaves the placeholder", _with(TIER, DropsEntryOnly), "KEPT"),
    Mutation("a drop leaves the entry", _with(TIER, DropsMarkOnly), "KEPT"),
    Mutation("a flush leaves the placeholders", _with(LINK, FlushesEntriesOnly), "KEPT"),
    Mutation("an untrusted L1 is served", _with(LINK, ServesUntrusted), "UNTRUSTED"),
    Mutation("own writes unseen without pushes", _wrong(ALONE, Slip.KEEPS_AT_ANSWER), "OWN"),
)
