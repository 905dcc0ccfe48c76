"""What every part of a run is given, and how subjects take turns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from bench.peers import Peers, WorkerFailed
from bench.report import Progress, Report
from bench.workload import Servers

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One run: its servers, its documents, its peers, and how long it may take.

    ``full`` asks for everything: more points, longer visits, the parts that take minutes.
    """

    at: Servers
    ids: list[UUID]
    peers: Peers
    report: Report
    rounds: int
    seconds: float
    full: bool
    traces: Path | None

    def turns(
        self, name: str, subjects: Mapping[str, Callable[[], T]], *, rounds: int | None = None
    ) -> dict[str, list[T]]:
        """Call every subject once per round, a different one first each time.

        Who raises ``WorkerFailed`` is reported, and left out of what is returned.
        """
        found: dict[str, list[T]] = {subject: [] for subject in subjects}
        for subject in self._order(name, list(subjects), rounds):
            if subject in found:
                try:
                    found[subject].append(subjects[subject]())
                except WorkerFailed as error:
                    del found[subject]
                    self.report.missing(f"{subject}, {name}", str(error))
        return found

    async def async_turns(
        self,
        name: str,
        subjects: Mapping[str, Callable[[], Awaitable[T]]],
        *,
        rounds: int | None = None,
    ) -> dict[str, list[T]]:
        """The same of subjects that share an event loop, and are no workers."""
        found: dict[str, list[T]] = {subject: [] for subject in subjects}
        for subject in self._order(name, list(subjects), rounds):
            found[subject].append(await subjects[subject]())
        return found

    def _order(self, name: str, order: list[str], rounds: int | None) -> Iterator[str]:
        if not order:
            return
        rounds = rounds or self.rounds
        progress = Progress(name, rounds * len(order))
        for turn in range(rounds):
            first = turn % len(order)
            for subject in order[first:] + order[:first]:
                progress.step(subject)
                yield subject
        progress.clear()
