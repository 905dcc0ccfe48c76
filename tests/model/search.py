"""Breadth-first search over every interleaving, so that a trace found is a shortest one.

Two things keep it small and fast. Records are numbered when first met, so a state is a
short tuple of integers, and what an agent can do is worked out once for each pair of its
record and the world. And readers and writers have no names: states that differ only in who
is who are one state. A state names an agent only by its place and by its token in the
pointers, so sorting the agents by record and token, and renaming the tokens to match,
gives each such class one representative.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Generic, TypeAlias, TypeVar

from tests.model.agents import (
    Fault,
    Join,
    ReaderMove,
    WriterMove,
    join,
    reader_token,
    write_ids,
    writer_token,
)
from tests.model.l1 import Kept, Link
from tests.model.process import fault_steps, reader_steps, writer_steps
from tests.model.state import (
    Reader,
    Reading,
    Replica,
    Setting,
    World,
    Writer,
    Writing,
    generation,
    start,
)

from forze.application.integrations.document.protocol import Intent, Lease, Pointer, Value

State: TypeAlias = tuple[int, ...]
"""The numbers of the world, of each writer, and of each reader."""

Record = TypeVar("Record", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found; ``wrong`` is None where everything holds in every state."""

    states: int
    documented: int  # states with a leftover that the documentation admits
    seconds: float
    wrong: str | None
    trace: tuple[str, ...]


class Numbering(Generic[Record]):
    """Equal records get the same number, counted from zero in the order they are met."""

    def __init__(self) -> None:
        self._numbers: dict[Record, int] = {}
        self.records: list[Record] = []

    def __call__(self, record: Record) -> int:
        number = self._numbers.get(record)
        if number is None:
            number = self._numbers[record] = len(self.records)
            self.records.append(record)
        return number


class Search:
    """One run of the checker over one setting."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._worlds: Numbering[World] = Numbering()
        self._writer: Numbering[Writer] = Numbering()
        self._reader: Numbering[Reader] = Numbering()
        self.reached: dict[State, State | None] = {}  # each state, and the one before it
        self._first_reader = 1 + setting.writers
        # Per search, because the numbers are.
        self._writer_moves = cache(self._work_out_writer_moves)
        self._reader_moves = cache(self._work_out_reader_moves)
        self._joins = cache(self._work_out_join)
        self._faults = cache(self._work_out_faults)
        self._marks = cache(self._work_out_marks)
        self._renamed = cache(self._work_out_renamed)
        self._leftovers = cache(self._check_leftovers)
        self._holder = cache(self._check_holder)

    def run(self) -> Outcome:
        """Every state that can be reached, or as far as the first one that is wrong."""
        began = time.perf_counter()
        first = self._canonical(self._start())
        before = self.reached
        before[first] = None
        todo = deque([first])
        documented = 0
        wrong: str | None = None
        trace: tuple[str, ...] = ()
        while todo and wrong is None:
            state = todo.popleft()
            for _, successor, bad in self._steps(state):
                if bad is None and successor in before:
                    continue
                reached = self._canonical(successor)
                if bad is None:
                    if reached in before:
                        continue
                    bad, leftover = self._check(reached)
                    documented += leftover
                if bad is not None:
                    wrong, trace = bad, self._retell(state, reached, bad)
                    break
                before[reached] = state
                todo.append(reached)
            if len(before) > self.setting.cap:
                wrong = f"CAP: more than {self.setting.cap} states"
        return Outcome(len(before), documented, time.perf_counter() - began, wrong, trace)

    def pointers(self) -> set[Pointer]:
        """Every pointer met so far."""
        return {world.pointer for world in self._worlds.records}

    def kept(self) -> set[Kept]:
        """Whatever the L1 was found to hold so far."""
        return {each.local.kept for each in self._worlds.records if each.local is not None}

    def _start(self) -> State:
        world, writers, readers = start(self.setting)
        return (
            self._world(world),
            *(self._writer(each) for each in writers),
            *(self._reader(each) for each in readers),
        )

    def _world(self, world: World) -> int:
        """The number of a world, the order of write ids aside: it makes no difference."""
        pointer, replica = _in_order(world.pointer), world.replica
        if replica is not None:
            replica = Replica(_in_order(replica.pointer))
        return self._worlds(replace(world, pointer=pointer, replica=replica))

    # What can happen next

    def _steps(self, state: State) -> Iterator[tuple[str, State, str | None]]:
        """Each step out of a state: its label, the state after it, what is wrong with it."""
        world, first = state[0], self._first_reader
        for place in self._distinct(state, 1, first):
            for label, then, writer in self._writer_moves(place - 1, state[place], world):
                yield label, (then, *state[1:place], writer, *state[place + 1 :]), None
        for place in self._distinct(state, first, len(state)):
            moves = self._reader_moves(place - first, state[place], world)
            for label, then, reader, freed, answered, wrong in moves:
                after = (then, *state[1:place], reader, *state[place + 1 :])
                if freed or answered:
                    after = self._released(after, freed, answered)
                yield label, after, wrong
        for label, then, writers, wrong in self._faults(world, state[1:first]):
            yield label, (then, *writers, *state[first:]), wrong
        if self.setting.join:
            yield from self._join_steps(state)

    def _distinct(self, state: State, low: int, high: int) -> list[int]:
        """The places whose agent is not the same as the one before, in all but name."""
        marks = self._marks(state[0])
        return [
            place
            for place in range(low, high)
            if place == low
            or state[place] != state[place - 1]
            or marks[place - 1] != marks[place - 2]
        ]

    def _join_steps(self, state: State) -> Iterator[tuple[str, State, str | None]]:
        places = range(self._first_reader, len(state))
        for idle in places:
            for leader in places:
                joined = self._joins(state[leader], state[idle], state[0])
                if joined is not None and idle != leader:
                    after = list(state)
                    after[leader], after[idle] = joined
                    who, whom = idle - self._first_reader, leader - self._first_reader
                    yield f"r{who} starts, joins r{whom}", tuple(after), None

    def _released(self, state: State, freed: tuple[int, ...], answered: int) -> State:
        """Followers finish, or start over; who of them is who makes no difference."""
        after, first = list(state), self._first_reader
        for place in range(first, len(state)):
            reader = self._reader.records[state[place]]
            if reader.stage is not Reading.FOLLOWING:
                continue
            if answered:
                after[place] = self._reader(Reader(Reading.FINISHED, reader.schema))
                answered -= 1
            elif freed:
                again = Reader(Reading.PROBING, reader.schema, freed[0])
                after[place], freed = self._reader(again), freed[1:]
        return tuple(after)

    # The agents' moves, in numbers

    def _work_out_writer_moves(
        self, index: int, writer: int, world: int
    ) -> list[tuple[str, int, int]]:
        record, shared = self._writer.records[writer], self._worlds.records[world]
        moves: list[WriterMove] = list(writer_steps(self.setting, index, record, shared))
        return [
            (f"w{index}: {each.label}", self._world(each.world), self._writer(each.writer))
            for each in moves
        ]

    def _work_out_reader_moves(
        self, index: int, reader: int, world: int
    ) -> list[tuple[str, int, int, tuple[int, ...], int, str | None]]:
        record, shared = self._reader.records[reader], self._worlds.records[world]
        moves: list[ReaderMove] = list(reader_steps(self.setting, index, record, shared))
        return [
            (
                f"r{index}: {each.label}",
                self._world(each.world),
                self._reader(each.reader),
                each.freed,
                each.answered,
                each.wrong,
            )
            for each in moves
        ]

    def _work_out_join(self, leader: int, idle: int, world: int) -> tuple[int, int] | None:
        leading, joining = self._reader.records[leader], self._reader.records[idle]
        if joining.stage is not Reading.IDLE or joining.schema != leading.schema:
            return None
        joined: Join | None = join(self.setting, leading, joining, self._worlds.records[world])
        if joined is None:
            return None
        return self._reader(joined.leader), self._reader(joined.joiner)

    def _work_out_faults(
        self, world: int, writers: tuple[int, ...]
    ) -> list[tuple[str, int, tuple[int, ...], str | None]]:
        records = tuple(self._writer.records[each] for each in writers)
        found: list[Fault] = list(fault_steps(self.setting, self._worlds.records[world], records))
        return [
            (
                each.label,
                self._world(each.world),
                tuple(self._writer(writer) for writer in each.writers),
                each.wrong,
            )
            for each in found
        ]

    # Symmetry

    def _canonical(self, state: State) -> State:
        """The representative of all states that differ from this one only in names."""
        world, first = state[0], self._first_reader
        marks = self._marks(world)
        keys = [record << 16 | mark for record, mark in zip(state[1:], marks, strict=True)]
        writers, readers = keys[: first - 1], keys[first - 1 :]
        by_writer, by_reader = sorted(writers), sorted(readers)
        if by_writer == writers and by_reader == readers:
            return state
        order = tuple(sorted(range(len(writers)), key=writers.__getitem__))
        seats = tuple(sorted(range(len(readers)), key=readers.__getitem__))
        renamed = self._renamed(world, order, seats)
        return (renamed, *(key >> 16 for key in by_writer), *(key >> 16 for key in by_reader))

    def _work_out_marks(self, world: int) -> tuple[int, ...]:
        """For each agent, how often its token stands in the pointer and in the replica's."""
        shared = self._worlds.records[world]
        now = _tokens(shared.pointer)
        then = _tokens(shared.replica.pointer if shared.replica else None)
        agents = [
            *(writer_token(each) for each in range(self.setting.writers)),
            *(reader_token(each) for each in range(self.setting.readers)),
        ]
        mark = shared.local.kept.mark if shared.local else None
        owner = mark[0] if mark else None
        return tuple(
            now.count(each) | (each == owner) << 4 | then.count(each) << 8 for each in agents
        )

    def _work_out_renamed(self, world: int, order: tuple[int, ...], seats: tuple[int, ...]) -> int:
        shared = self._worlds.records[world]
        names = {writer_token(old): writer_token(new) for new, old in enumerate(order)}
        names |= {reader_token(old): reader_token(new) for new, old in enumerate(seats)}
        replica = shared.replica and Replica(_rename(shared.replica.pointer, names))
        pointer, local = _rename(shared.pointer, names), shared.local
        if local is not None and local.kept.mark is not None:
            owner, question = local.kept.mark
            local = replace(local, kept=replace(local.kept, mark=(names[owner], question)))
        return self._world(replace(shared, pointer=pointer, replica=replica, local=local))

    # What must hold in every state

    def _check(self, state: State) -> tuple[str | None, bool]:
        """What is wrong with a state, and whether it has a leftover that is documented."""
        world, first = state[0], self._first_reader
        wrong, documented = self._leftovers(world, state[1:first])
        if wrong is None:
            held = [
                self._holder(world, place - first, state[place])
                for place, mark in enumerate(self._marks(world)[first - 1 :], first)
                if mark
            ]
            wrong = next((each for each in held if each), None)
        if wrong is None and self._worlds.records[world].local is not None:
            wrong, admitted = self._check_l1(world, state[1:first], state[first:])
            documented |= admitted
        if wrong is None and self.setting.join and not self._accounted_for(state[first:]):
            wrong = "STUCK: a follower waits for no flight"
        return wrong, documented

    def _check_leftovers(self, world: int, numbers: tuple[int, ...]) -> tuple[str | None, bool]:
        """Nothing outlives its writers but what is documented."""
        shared = self._worlds.records[world]
        writers = [self._writer.records[each] for each in numbers]
        standing = write_ids(shared.pointer)
        if shared.gen == 0 and not self.setting.strays:
            for index, writer in enumerate(writers):
                if writer.stage is Writing.FINISHED and writer_token(index) in standing:
                    return "RESIDUE: the intent of a finished write", False
        value = shared.pointer
        if self.setting.direct or not isinstance(value, Value):
            return None, False
        if generation(value.tag) != shared.gen or int(value.version) == shared.db:
            return None, False
        if any(each.stage not in _AT_REST for each in writers):
            return None, False
        if any(each.stage is Writing.DIED_COMMITTED and each.lost for each in writers):
            return None, True
        return f"STALE: v{value.version} stays, the source has v{shared.db}", False

    def _check_l1(
        self, world: int, writing: tuple[int, ...], reading: tuple[int, ...]
    ) -> tuple[str | None, bool]:
        """Once everything has been heard of, no older entry is left in the L1."""
        shared = self._worlds.records[world]
        writers = [self._writer.records[each] for each in writing]
        local = shared.local
        if local is None or local.link is not Link.UP or local.turn is not None or local.pushes:
            return None, False
        entry = local.kept.entry
        if entry is None or entry == shared.db:
            return None, False
        readers = [self._reader.records[each] for each in reading]
        if any(each.unheard or each.stage in _ASKING for each in readers):
            return None, False
        if any(each.renewal or each.stage in _TELLING for each in writers):
            return None, False
        oldest = shared.ack
        if all(each.stage in _AT_REST for each in writers):
            # What a writer that died has announced is pushed once more when it lapses.
            oldest = shared.ack if isinstance(shared.pointer, Intent) else shared.db
        if entry >= oldest:
            return None, False
        if any(each.stage is Writing.DIED_COMMITTED and each.lost for each in writers):
            return None, True
        return f"KEPT: v{entry} stays in the L1, v{oldest} is in the source", False

    def _check_holder(self, world: int, index: int, number: int) -> str | None:
        """A reader that has finished in good order holds nothing."""
        shared, reader = self._worlds.records[world], self._reader.records[number]
        token = reader_token(index)
        match shared.pointer:
            case Lease(tag=tag, token=holder) if holder == token:
                what = "lease"
            case Value(tag=tag, refresh=refresh) if refresh and refresh.token == token:
                what = "right to refresh"
            case _:
                return None
        if reader.stage is Reading.FINISHED and generation(tag) == shared.gen:
            return f"RESIDUE: the {what} of a finished reader"
        return None

    def _accounted_for(self, numbers: Sequence[int]) -> bool:
        readers = [self._reader.records[each] for each in numbers]
        waiting = sum(each.stage is Reading.FOLLOWING for each in readers)
        return waiting == sum(len(each.followers) for each in readers)

    # Telling how it came about

    def _retell(self, last: State, reached: State, wrong: str) -> tuple[str, ...]:
        """The labels of the way to ``reached``, told from the start so that names stay."""
        way = [reached]
        at: State | None = last
        while at is not None:
            way.append(at)
            at = self.reached[at]
        told: list[str] = []
        state = self._start()
        for wanted in way[-2::-1]:
            steps = [each for each in self._steps(state) if self._canonical(each[1]) == wanted]
            final = [each for each in steps if each[2] == wrong and wanted is reached]
            label, state, _ = (final or steps)[0]
            told.append(label)
        return tuple(told)


_ASKING = {
    Reading.PROBING,
    Reading.HIT,
    Reading.LEASED,
    Reading.FILLING,
    Reading.ACCEPTED,
    Reading.REFUSED,
    Reading.VOLUNTEERING,
    Reading.ELECTED,
    Reading.PASSED_OVER,
}
"""A command is under way whose answer may yet drop an entry."""

_TELLING = {Writing.ANNOUNCING, Writing.INTENDED, Writing.ENDING, Writing.UNHEARD}

_AT_REST = {
    Writing.IDLE,
    Writing.ENDED,
    Writing.FINISHED,
    Writing.DIED,
    Writing.DIED_COMMITTED,
}


def _tokens(pointer: Pointer) -> tuple[str, ...]:
    """The tokens and ids in a pointer."""
    match pointer:
        case Lease(token=token):
            return (token,)
        case Value(refresh=refresh) if refresh is not None:
            return (refresh.token,)
        case Intent(ids):
            return tuple(each for each, _ in ids)
    return ()


def _in_order(pointer: Pointer) -> Pointer:
    return Intent(tuple(sorted(pointer.ids))) if isinstance(pointer, Intent) else pointer


def _rename(pointer: Pointer, names: dict[str, str]) -> Pointer:
    match pointer:
        case Lease(token=token):
            return replace(pointer, token=names[token])
        case Value(refresh=refresh) if refresh is not None:
            return replace(pointer, refresh=replace(refresh, token=names[refresh.token]))
        case Intent(ids):
            return Intent(tuple((names[each], until) for each, until in ids))
    return pointer
