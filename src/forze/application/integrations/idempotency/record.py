"""An idempotency record and its transitions: pure, the definition that every store carries out.

Times are whole milliseconds on the store's own clock. A refusal leaves the record as it is.
A repeated attempt (the same owner asks again because a reply was lost) gets the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, NamedTuple, TypeAlias

from forze.application.contracts.idempotency import IdempotencySnapshot

How: TypeAlias = Literal["new", "again", "takeover", "mine"]
"""Why a claim was granted: there was nothing, it was freed, it lapsed, it is the asker's own."""


class State(StrEnum):
    """Where a record stands."""

    PENDING = "pending"
    FREE = "free"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One key's record. ``lease_until`` counts while pending; a free one keeps its generation."""

    state: State
    generation: int
    payload_hash: str = ""
    owner: str = ""
    lease_until: int = 0
    snapshot: IdempotencySnapshot | None = None


class Granted(NamedTuple):
    """The claim is the asker's."""

    generation: int
    how: How


class Busy(NamedTuple):
    """Another runs it; its lease has this much left, unless it is kept up."""

    lease_left_ms: int


class Mismatched(NamedTuple):
    """The key stands for another payload."""


class Completed(NamedTuple):
    """It was run; this was the answer."""

    snapshot: IdempotencySnapshot


Answer: TypeAlias = Granted | Busy | Mismatched | Completed


def claim(
    record: Record | None, owner: str, payload_hash: str, lease_ms: int, now: int
) -> tuple[Record | None, Answer]:
    """Ask for the right to run."""
    generation, how = 1, "new"
    if record is not None:
        if record.state is not State.FREE and record.payload_hash != payload_hash:
            return record, Mismatched()
        if record.state is State.COMPLETED:
            assert record.snapshot is not None
            return record, Completed(record.snapshot)
        generation, how = record.generation + 1, "again"
        if record.state is State.PENDING:
            if record.owner == owner:
                generation, how = record.generation, "mine"
            elif record.lease_until > now:
                return record, Busy(record.lease_until - now)
            else:
                how = "takeover"
    claimed = Record(
        state=State.PENDING,
        generation=generation,
        payload_hash=payload_hash,
        owner=owner,
        lease_until=now + lease_ms,
    )
    return claimed, Granted(generation, how)  # type: ignore[arg-type] # `how` is one of How


def beat(
    record: Record | None, owner: str, generation: int, lease_ms: int, now: int
) -> tuple[Record | None, bool]:
    """Keep up the lease; False where it is another's by now."""
    if not _holds(record, owner, generation):
        return record, False
    assert record is not None
    return replace(record, lease_until=now + lease_ms), True


def complete(
    record: Record | None, owner: str, generation: int, snapshot: IdempotencySnapshot
) -> tuple[Record | None, bool]:
    """Store the answer; False where the record is another's by now. The first answer stays."""
    if record is None or (record.owner, record.generation) != (owner, generation):
        return record, False
    if record.state is State.COMPLETED:
        return record, True
    return replace(record, state=State.COMPLETED, lease_until=0, snapshot=snapshot), True


def release(record: Record | None, owner: str, generation: int) -> tuple[Record | None, bool]:
    """Free the key; False where it is not the owner's. Generation 0: whichever the owner has."""
    if record is None or not _holds(record, owner, generation or record.generation):
        return record, False
    return Record(state=State.FREE, generation=record.generation), True


def _holds(record: Record | None, owner: str, generation: int) -> bool:
    return (
        record is not None
        and record.state is State.PENDING
        and (record.owner, record.generation) == (owner, generation)
    )
