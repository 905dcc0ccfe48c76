"""The judge: knows the logs and the bound, nothing of caches.

::

    python -m tests.judge.checker LOGS --bound 0.5 --operations 100000

A read that starts at ``t`` must return at least the highest revision acknowledged before
``t - bound``. The bound applies to what an L1 answered; every other read has none to hide
behind. Beyond it: a process reads its own acknowledged writes; nothing is read that was
never committed, or not begun; acknowledged revisions follow one another, in the order of time.

Exits with 1 on violations, else with 2 where the run does not count (too few operations, or
too few reads answered by one of the tiers or under an intent), else with 0.
"""

from __future__ import annotations

import argparse
import sys
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from tests.judge.record import Closing, Read, Record, Served, Write, read_logs

LEAST_SHARES = {"L1 hits": 0.20, "Redis hits": 0.20, "under an intent": 0.05}
BOUNDED: frozenset[Served] = frozenset({"l1", "mixed"})
SHOWN = 10
MS = 1_000_000


class Acknowledged:
    """Acknowledged writes of one document: what had to be visible when."""

    def __init__(self, writes: Iterable[Write]) -> None:
        by_rev = sorted(writes, key=lambda each: each.rev)
        ends = [each.end for each in by_rev]
        self._revs = [each.rev for each in by_rev]
        self._soonest = list(accumulate(reversed(ends), min))[::-1]

    def overdue(self, rev: int, at: int) -> int:
        """How long before ``at`` something newer than ``rev`` was acknowledged, in ns; 0: never.

        A write that ends when a read starts may not have been seen by it.
        """
        newer = bisect_right(self._revs, rev)
        return max(0, at - self._soonest[newer]) if newer < len(self._revs) else 0


class Document:
    """What was done to one document."""

    def __init__(self, writes: Sequence[Write]) -> None:
        self.writes = writes
        self.acknowledged = [each for each in writes if each.outcome == "ok"]
        self.everyone = Acknowledged(self.acknowledged)
        by_process = defaultdict(list)
        for each in self.acknowledged:
            by_process[each.process].append(each)
        self.own = {process: Acknowledged(each) for process, each in by_process.items()}
        self.begun = {(w.rev, w.value): w.start for w in writes if w.outcome != "failed"}
        self._announced = sorted((w.start, w.end) for w in writes)
        self._latest_end = list(accumulate((end for _, end in self._announced), max))

    def under_write(self, at: int) -> bool:
        """Whether a write, whatever became of it, was under way."""
        begun = bisect_left(self._announced, (at, 0))
        return begun > 0 and self._latest_end[begun - 1] > at


class Violation(NamedTuple):
    """What is wrong with a record; where it is a read, how long it was overdue."""

    what: str
    record: Read | Write
    overdue_ms: float = 0.0


@dataclass(slots=True)
class Verdict:
    """What the logs say."""

    bound: int
    operations: int = 0
    asked: int = 0
    reads: int = 0
    writes: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    under_intent: int = 0
    oldest: dict[str, int] = field(default_factory=dict)
    closing: list[Closing] = field(default_factory=list)
    cut_short: list[int] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)

    @property
    def shares(self) -> dict[str, float]:
        """Of the reads; of what the log says and what the caches counted, the lower."""
        counted = {
            "L1 hits": (self.served["l1"], sum(each.l1_hits for each in self.closing)),
            "Redis hits": (self.served["redis"], sum(each.redis_hits for each in self.closing)),
            "under an intent": (self.under_intent, sum(each.bypasses for each in self.closing)),
        }
        return {name: min(both) / max(1, self.reads) for name, both in counted.items()}

    @property
    def missing(self) -> list[str]:
        """Why the run does not count."""
        reasons = [
            f"{share:.1%} of the reads were {name}, {LEAST_SHARES[name]:.0%} are needed"
            for name, share in self.shares.items()
            if share < LEAST_SHARES[name]
        ]
        if self.operations < self.asked:
            reasons.append(f"{self.operations} operations, {self.asked} were asked for")
        if self.cut_short:
            reasons.append(f"the logs of processes {self.cut_short} are cut short")
        return reasons

    @property
    def exit_code(self) -> int:
        """0 clean, 1 violations, 2 does not count."""
        if self.violations:
            return 1
        return 2 if self.missing else 0

    def lines(self) -> list[str]:
        """The verdict for people."""
        shares = ", ".join(f"{share:.1%} {name}" for name, share in self.shares.items())
        oldest = ", ".join(f"{name} {age / MS:.1f} ms" for name, age in self.oldest.items())
        text = [
            f"operations  {self.operations}: {self.reads} documents read, writes "
            + (", ".join(f"{count} {what}" for what, count in sorted(self.writes.items()))),
            f"reads       {shares}; by who answered: {dict(sorted(self.served.items()))}",
            f"beside it   {sum(each.pushes for each in self.closing)} keys pushed, "
            f"{sum(each.refreshes for each in self.closing)} refreshed early",
            f"errors      {dict(sorted(self.errors.items()))}",
            f"oldest      {oldest or 'nothing was stale at all'} (bound {self.bound / MS:g} ms)",
        ]
        kinds = Counter(f"{each.what} ({_by(each.record)})" for each in self.violations)
        text.append(f"violations  {len(self.violations)} {dict(kinds) if kinds else ''}".rstrip())
        for what, record, overdue_ms in self.violations[:SHOWN]:
            text.append(f"  {what}, overdue {overdue_ms:.3f} ms: {record}")
        text += [f"does not count: {reason}" for reason in self.missing]
        return text


def judge(records: Iterable[Record], *, bound: float, operations: int = 0) -> Verdict:
    """Judge the records of a run; ``bound`` in seconds, ``operations`` at least."""
    verdict = Verdict(bound=round(bound * 1000 * MS), asked=operations)
    reads: list[Read] = []
    writes: defaultdict[int, list[Write]] = defaultdict(list)
    seen: set[tuple[int, int]] = set()
    for record in records:
        if isinstance(record, Closing):
            verdict.closing.append(record)
            continue
        if record.process >= 0:
            seen.add((record.process, record.operation))
        if record.error:
            verdict.errors[f"{type(record).__name__.lower()}: {record.error}"] += 1
        if isinstance(record, Write):
            writes[record.document].append(record)
            verdict.writes[record.outcome] += record.process >= 0
        elif record.outcome == "ok":
            reads.append(record)
    verdict.operations, verdict.reads = len(seen), len(reads)
    closed = {each.process for each in verdict.closing}
    verdict.cut_short = sorted({process for process, _ in seen} - closed)
    documents = {name: Document(each) for name, each in writes.items()}
    for document in documents.values():
        _judge_writes(verdict, document)
    unknown = Document(())
    for read in reads:
        _judge_read(verdict, read, documents.get(read.document, unknown))
    return verdict


def _judge_read(verdict: Verdict, read: Read, document: Document) -> None:
    verdict.served[read.served] += 1
    verdict.under_intent += read.served == "source" and document.under_write(read.start)
    age = document.everyone.overdue(read.rev, read.start)
    if age:
        verdict.oldest[read.served] = max(age, verdict.oldest.get(read.served, 0))
    begun = document.begun.get((read.rev, read.value))
    own = document.own.get(read.process)
    if begun is None:
        verdict.violations.append(Violation("never committed", read))
    elif begun > read.end:
        verdict.violations.append(Violation("read before it was written", read))
    if own is not None and (missed := own.overdue(read.rev, read.start)):
        verdict.violations.append(Violation("misses an own write", read, missed / MS))
    elif age > (verdict.bound if read.served in BOUNDED else 0):
        verdict.violations.append(Violation("too old", read, age / MS))


def _judge_writes(verdict: Verdict, document: Document) -> None:
    committed = {rev for rev, _ in document.begun}
    once = Counter(each.rev for each in document.acknowledged)
    for write in document.acknowledged:
        if once[write.rev] > 1:
            verdict.violations.append(Violation("acknowledged twice", write))
        if write.process >= 0 and write.rev - 1 not in committed:
            verdict.violations.append(Violation("follows a revision nobody wrote", write))
        if document.everyone.overdue(write.rev, write.start):
            verdict.violations.append(Violation("written over something newer", write))


def _by(record: Read | Write) -> str:
    return record.served if isinstance(record, Read) else "write"


def main() -> int:
    """Judge a directory of logs."""
    parser = argparse.ArgumentParser(prog="python -m tests.judge.checker")
    parser.add_argument("logs", type=Path)
    parser.add_argument("--bound", type=float, required=True, help="seconds an L1 may be behind")
    parser.add_argument("--operations", type=int, default=0, help="what the run must hold")
    options = parser.parse_args()
    verdict = judge(read_logs(options.logs), bound=options.bound, operations=options.operations)
    print("\n".join(verdict.lines()))
    return verdict.exit_code


if __name__ == "__main__":
    sys.exit(main())
