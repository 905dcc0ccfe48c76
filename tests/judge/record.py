"""The log that workers write and the checker reads: one JSON object a line, one file a process.

Times are nanoseconds of ``CLOCK_MONOTONIC``, which all processes of a host share: ``start``
is taken before the call, ``end`` after it, so an interval never is shorter than the truth.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TextIO, TypeAlias

Served = Literal["l1", "redis", "source", "mixed", "away", "direct"]
"""Who answered a read. ``source``: not a hit of either tier (its own load, or another
caller's); ``mixed``: one of several documents, some of them from the L1; ``away``: while the
cache was known to be away; ``direct``: the source was asked for (in a transaction, say)."""

Outcome = Literal["ok", "failed", "unknown"]
"""``failed``: certainly without effect. ``unknown``: not acknowledged, may have taken effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One document read. Those of one call share process, operation and times."""

    process: int
    operation: int
    document: int
    start: int
    end: int
    served: Served
    outcome: Outcome
    rev: int = 0
    value: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One document written, or attempted: ``rev`` and ``value`` are what it would have then.

    No two writes have the same value.
    """

    process: int
    operation: int
    document: int
    start: int
    end: int
    outcome: Outcome
    rev: int
    value: int
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """A process's last line: its caches' own counts. A log without one is cut short."""

    process: int
    l1_hits: int
    redis_hits: int
    bypasses: int
    pushes: int = 0
    refreshes: int = 0


Record: TypeAlias = Read | Write | Closing

_KINDS: dict[str, type[Record]] = {"read": Read, "write": Write, "closing": Closing}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_PATTERN = "*.jsonl"


def now() -> int:
    """The host's clock, in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def log_file(directory: Path, name: str) -> Path:
    """Where the process ``name`` writes."""
    return directory / _PATTERN.replace("*", name)


def write_line(file: TextIO, record: Record) -> None:
    """Append a record."""
    file.write(json.dumps({"kind": _NAMES[type(record)], **asdict(record)}) + "\n")


def read_logs(directory: Path) -> Iterator[Record]:
    """Every record of every file of a run."""
    for path in sorted(directory.glob(_PATTERN)):
        with path.open() as file:
            for line in file:
                fields = json.loads(line)
                yield _KINDS[fields.pop("kind")](**fields)
