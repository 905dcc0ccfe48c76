"""What each task was admitted under, for outcomes that are recorded without saying."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Final
from weakref import ref

from forze.application.contracts.resilience import Admission, PolicyKey

_Owner = ref["asyncio.Task[object]"]
_Held = tuple[_Owner, dict[PolicyKey, Admission]]

_MOST_KEYS: Final = 256
"""So many keys of one task are remembered, the latest."""

_MOST_PROBES: Final = 64


class Admissions:
    """The last admission of each task, by key. A task that took none itself, or was refused,
    means the last one of the process.

    A probe ends once: whoever took three, and then tells three outcomes, has told one of each.
    """

    __slots__ = ("_latest", "_of_task", "_probes")

    def __init__(self) -> None:
        self._of_task: ContextVar[_Held | None] = ContextVar("forze_admissions", default=None)
        self._latest: dict[PolicyKey, Admission] = {}
        self._probes: dict[PolicyKey, list[tuple[_Owner | None, Admission]]] = {}

    def remember(self, key: PolicyKey, admission: Admission) -> Admission:
        """The current task was given this."""
        task = asyncio.current_task()
        held = self._of_task.get()
        if task is not None and (held is None or held[0]() is not task):
            # A child task has a copy of the variable, and must not write into its parent's.
            held = ref(task), {}
            self._of_task.set(held)
        if held is not None:
            mine = held[1]
            if len(mine) >= _MOST_KEYS and key not in mine:
                del mine[next(iter(mine))]
            mine[key] = admission
        self._latest[key] = admission
        if admission.permit is not None or key in self._probes:
            self._remember_probe(key, admission, None if held is None else held[0])
        return admission

    def ended(self, key: PolicyKey, admission: Admission | None) -> Admission | None:
        """What an outcome belongs to: ``admission``, or else the last one of the task."""
        probes = self._probes.get(key)
        if admission is None:
            admission = self._last(key, probes or [])
        if probes is not None and admission is not None:
            probes[:] = [each for each in probes if each[1].permit != admission.permit]
        return admission

    def forget(self, key: PolicyKey) -> None:
        """Nobody will ask for ``key`` without an admission of its own task."""
        self._latest.pop(key, None)
        self._probes.pop(key, None)

    def _remember_probe(self, key: PolicyKey, admission: Admission, owner: _Owner | None) -> None:
        """Keep the probes of this half-open phase that have no outcome yet."""
        probes = [
            each for each in self._probes.pop(key, ()) if each[1].generation == admission.generation
        ]
        if admission.permit is not None:
            probes.append((owner, admission))
        if probes:
            self._probes[key] = probes[-_MOST_PROBES:]

    def _last(
        self, key: PolicyKey, probes: list[tuple[_Owner | None, Admission]]
    ) -> Admission | None:
        held = self._of_task.get()
        if held is not None and held[0]() is asyncio.current_task() and key in held[1]:
            own = [probe for owner, probe in probes if owner is held[0]]
            last = own[-1] if own else held[1][key]
            if last.allowed:
                return last
        return probes[-1][1] if probes else self._latest.get(key)
