"""The judge itself, on logs written by hand: what it must find, and what it must let pass."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.judge.checker import Verdict, judge, main
from tests.judge.record import Closing, Outcome, Read, Record, Served, Write, log_file, write_line

MS = 1_000_000
BOUND_SECONDS = 0.1
FIRST = Write(process=-1, operation=0, document=1, start=0, end=1, outcome="ok", rev=1, value=1)


def wrote(
    rev: int,
    start: int,
    end: int,
    *,
    process: int = 0,
    outcome: Outcome = "ok",
    value: int | None = None,
) -> Write:
    """A write of the document; times in ms."""
    return Write(
        process=process,
        operation=rev,
        document=1,
        start=start * MS,
        end=end * MS,
        outcome=outcome,
        rev=rev,
        value=rev if value is None else value,
    )


def read(
    rev: int,
    start: float,
    *,
    process: int = 1,
    served: Served = "l1",
    value: int | None = None,
    operation: int = 0,
) -> Read:
    """A read that takes 1 ms; times in ms."""
    return Read(
        process=process,
        operation=operation,
        document=1,
        start=round(start * MS),
        end=round((start + 1) * MS),
        served=served,
        outcome="ok",
        rev=rev,
        value=rev if value is None else value,
    )


def found(*records: Record) -> list[str]:
    """What the judge finds wrong."""
    verdict = judge((FIRST, *records), bound=BOUND_SECONDS)
    assert verdict.exit_code == (1 if verdict.violations else 2)
    return [each.what for each in verdict.violations]


def test_a_read_older_than_the_bound_is_found() -> None:
    write = wrote(2, 10, 20)
    assert found(write, read(2, 21)) == []
    assert found(write, read(1, 20)) == [], "the write was not acknowledged before it began"
    assert found(write, read(1, 15)) == [], "the write was under way"
    assert found(write, read(1, 120)) == [], "just within the bound"
    assert found(write, read(1, 120.001)) == ["too old"]
    assert found(write, read(1, 400)) == ["too old"]


@pytest.mark.parametrize("served", ["redis", "source", "away", "direct"])
def test_only_an_l1_has_a_bound_to_hide_behind(served: Served) -> None:
    write = wrote(2, 10, 20)
    assert found(write, read(1, 20.001, served=served)) == ["too old"]
    assert found(write, read(1, 20, served=served)) == []
    assert found(write, read(1, 30, served="mixed")) == []


@pytest.mark.parametrize(("rev", "at", "overdue_ms"), [(2, 141, 101), (1, 165, 145)])
def test_age_counts_from_the_oldest_write_that_was_missed(
    rev: int, at: int, overdue_ms: int
) -> None:
    writes = wrote(2, 10, 20), wrote(3, 30, 40), wrote(4, 150, 160)
    assert found(*writes, read(3, 165)) == []
    missed = read(rev, at)
    assert judge([FIRST, *writes, missed], bound=BOUND_SECONDS).violations == [
        ("too old", missed, overdue_ms)
    ]


def test_a_revision_holds_those_before_it_acknowledged_or_not() -> None:
    writes = wrote(2, 10, 500), wrote(3, 30, 40)
    assert found(*writes, read(1, 145)) == ["too old"]


def test_a_write_that_was_not_acknowledged_binds_nobody() -> None:
    for outcome in ("failed", "unknown"):
        assert found(wrote(2, 10, 20, outcome=outcome), read(1, 400)) == []


def test_a_process_reads_its_own_writes() -> None:
    assert found(wrote(2, 10, 20, process=1), read(1, 25)) == ["misses an own write"]
    assert found(wrote(2, 10, 20, process=1), read(1, 20)) == []
    assert found(wrote(2, 10, 20, process=0), read(1, 25)) == []


def test_what_was_never_committed_is_not_read() -> None:
    assert found(read(2, 10)) == ["never committed"]
    assert found(wrote(2, 1, 5, outcome="failed"), read(2, 10)) == ["never committed"]
    assert found(wrote(2, 1, 5, outcome="unknown"), read(2, 10)) == []
    rolled_back = wrote(2, 1, 5, outcome="failed", value=77)
    assert found(rolled_back, wrote(2, 6, 9), read(2, 10, value=77)) == ["never committed"]
    assert found(wrote(2, 12, 13), read(2, 10)) == ["read before it was written"]
    assert found(wrote(2, 11, 13), read(2, 10)) == []


def test_acknowledged_revisions_follow_one_another() -> None:
    assert found(wrote(2, 10, 20), wrote(3, 21, 30)) == []
    assert found(wrote(2, 10, 20), wrote(3, 15, 17)) == [], "side by side in either order"
    assert found(wrote(3, 10, 20)) == ["follows a revision nobody wrote"]
    assert found(wrote(2, 10, 20, outcome="unknown"), wrote(3, 21, 30)) == []
    assert found(wrote(2, 10, 20), wrote(2, 15, 25, value=3)) == ["acknowledged twice"] * 2
    backwards = found(wrote(3, 10, 20), wrote(2, 25, 30))
    assert backwards == ["written over something newer"]


def test_a_read_under_an_intent_is_one_of_the_source_beside_a_write() -> None:
    records: list[Record] = [
        wrote(2, 10, 20, outcome="failed"),
        read(1, 15, served="source"),
        read(1, 15, served="redis"),
        read(1, 10, served="source"),
        read(1, 20, served="source"),
    ]
    assert judge([FIRST, *records], bound=BOUND_SECONDS).under_intent == 1


def test_the_judge_against_one_that_looks_at_every_pair() -> None:
    dice = random.Random(1)
    for _ in range(300):
        writes = [FIRST]
        for rev in range(2, 7):
            start = dice.randint(1, 60)
            writes.append(
                wrote(rev, start, start + dice.randint(1, 60), process=dice.randint(0, 1))
            )
        reads = [read(dice.randint(1, 6), dice.randint(1, 130)) for _ in range(6)]
        stale = [
            each
            for each in reads
            if any(w.rev > each.rev and w.end + 50 * MS < each.start for w in writes)
            or any(w.rev > each.rev and w.end < each.start and w.process == 1 for w in writes)
        ]
        verdict = judge([*writes, *reads], bound=0.05)
        late = {"too old", "misses an own write"}
        old = [each.record for each in verdict.violations if each.what in late]
        assert [each for each in old if isinstance(each, Read)] == stale


def counting(**closing: int) -> Verdict:
    """A run of twenty reads: 8 of the L1, 8 of Redis, 4 of the source, 2 of them in an intent."""
    reads = [read(1, 60, served="l1", operation=n) for n in range(8)]
    reads += [read(1, 60, served="redis", operation=n) for n in range(8, 16)]
    reads += [read(1, 60, served="source", operation=n) for n in range(16, 18)]
    reads += [read(1, 15, served="source", operation=n) for n in range(18, 20)]
    counts = {"l1_hits": 8, "redis_hits": 8, "bypasses": 2, **closing}
    none = dict.fromkeys(counts, 0)
    last = [Closing(process=0, **none), Closing(process=1, **counts)]
    under = wrote(2, 10, 20, outcome="failed")
    return judge([FIRST, under, *reads, *last], bound=BOUND_SECONDS, operations=21)


def test_a_run_counts_only_with_enough_of_everything() -> None:
    assert counting().shares == {"L1 hits": 0.4, "Redis hits": 0.4, "under an intent": 0.1}
    assert counting().exit_code == 0


@pytest.mark.parametrize(
    ("closing", "reason"),
    [
        ({"l1_hits": 3}, "15.0% of the reads were L1 hits, 20% are needed"),
        ({"redis_hits": 3}, "15.0% of the reads were Redis hits, 20% are needed"),
        ({"bypasses": 0}, "0.0% of the reads were under an intent, 5% are needed"),
    ],
)
def test_what_the_caches_counted_must_agree(closing: dict[str, int], reason: str) -> None:
    verdict = counting(**closing)
    assert verdict.missing == [reason]
    assert verdict.exit_code == 2


def test_too_few_operations_and_logs_cut_short_do_not_count() -> None:
    verdict = judge([FIRST, read(1, 5)], bound=BOUND_SECONDS, operations=2)
    assert "1 operations, 2 were asked for" in verdict.missing
    assert "the logs of processes [1] are cut short" in verdict.missing


@pytest.mark.parametrize(("at", "code"), [(25, 2), (121, 1)])
def test_the_program_says_so_in_its_exit_code(
    at: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, record in (("setup", FIRST), ("a", wrote(2, 10, 20)), ("b", read(1, at))):
        with log_file(tmp_path, name).open("x") as log:
            write_line(log, record)
    monkeypatch.setattr("sys.argv", ["checker", str(tmp_path), "--bound", "0.1"])
    assert main() == code
