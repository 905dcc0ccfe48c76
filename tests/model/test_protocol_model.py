"""The guarantee, explored: the shipped transitions under every interleaving and fault.

``python -m tests.model.checker -v`` prints the same figures, and the traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import pytest
from tests.model import l1
from tests.model.agents import lapsed
from tests.model.checker import TABLES, as_expected, explored, row
from tests.model.l1 import Shipped
from tests.model.mutations import MUTATIONS, Mutation
from tests.model.search import Outcome, Search, State
from tests.model.state import LIVE, NOW, Setting, Transitions, tag
from tests.model.variants import VARIANTS, Variant

from forze.application.integrations.document import protocol
from forze.application.integrations.document.l1.tier import Key, Tier
from forze.application.integrations.document.protocol import Intent, Pointer, Value

EVERYTHING = Setting(
    readers=2,
    writers=2,
    nothing=True,
    refresh=True,
    join=True,
    tokenless=True,
    unanswered=True,
    strays=True,
    direct=True,
)


Case = Variant | Mutation


@pytest.fixture(scope="session")
def outcome_of(request: pytest.FixtureRequest) -> Iterator[Callable[[Case], Outcome]]:
    """What a search finds: of every case that was selected, explored on every core."""
    selected = [
        each.callspec.params["case"]
        for each in request.session.items
        if isinstance(each, pytest.Function) and "outcome_of" in each.fixturenames
    ]
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        outcomes = {
            id(case): pool.submit(explored, title, place)
            for title, cases in TABLES.items()
            for place, case in enumerate(cases)
            if any(case is each for each in selected)
        }
        yield lambda case: outcomes[id(case)].result()


@pytest.mark.parametrize(
    "case", [each for each in VARIANTS if not each.full], ids=lambda each: each.name
)
def test_the_protocol_holds(
    case: Variant, outcome_of: Callable[[Case], Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = outcome_of(case)
    with capsys.disabled():
        print(f"\n{row(case, outcome)}", end=" ")
    assert as_expected(case, outcome), (outcome.wrong, outcome.trace)


@pytest.mark.parametrize("case", MUTATIONS, ids=lambda each: each.name)
def test_a_wrong_protocol_is_caught(
    case: Mutation, outcome_of: Callable[[Case], Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = outcome_of(case)
    with capsys.disabled():
        print(f"\n{row(case, outcome)}", end=" ")
    assert as_expected(case, outcome), (outcome.wrong, outcome.trace)


def test_what_catches_mutations_holds_without_them() -> None:
    plain = [
        replace(
            each.setting,
            transitions=Transitions(),
            slips=frozenset(),
            l1=each.setting.l1 and Shipped(),
        )
        for each in MUTATIONS
    ]
    explored = [each.setting for each in VARIANTS]
    for number, setting in enumerate(plain):
        if setting not in explored + plain[:number]:
            assert Search(setting).run().wrong is None


def test_a_cap_that_is_reached_is_a_failure() -> None:
    outcome = Search(Setting(cap=100)).run()
    assert outcome.wrong == "CAP: more than 100 states"
    assert not as_expected(Variant("any", Setting()), outcome)


def test_nothing_is_left_behind_unless_an_intent_is_lost() -> None:
    lossy = Search(Setting(readers=2)).run()
    lossless = Search(Setting(readers=2, evict=False)).run()
    assert (lossy.wrong, lossless.wrong) == (None, None)
    assert lossy.documented > 0
    assert lossless.documented == 0


# The model is made of the shipped functions


def test_the_transitions_are_the_shipped_ones() -> None:
    transitions = Transitions()
    for each in fields(Transitions):
        assert getattr(transitions, each.name) is getattr(protocol, each.name)


def test_every_pointer_in_the_model_came_out_of_a_shipped_function() -> None:
    came_out: set[Pointer] = {None, Value(tag(0, "a"), "0")}
    called: set[str] = set()

    def recorded(name: str) -> Callable[..., Any]:
        shipped = getattr(protocol, name)

        def function(*arguments: Any) -> Any:
            result = shipped(*arguments)
            called.add(name)
            if name != "may_commit":
                came_out.add(result[0] if isinstance(result, tuple) else result)
            return result

        return function

    names = [each.name for each in fields(Transitions)]
    search = Search(
        replace(
            EVERYTHING,
            readers=1,
            writers=1,
            join=False,
            transitions=Transitions(**{name: recorded(name) for name in names}),
        )
    )
    assert search.run().wrong is None
    assert called == set(names)
    assert search.pointers() <= came_out


def test_every_change_of_the_l1_in_the_model_is_made_by_the_shipped_tier() -> None:
    came_out: set[object] = {None}
    called: set[str] = set()

    class Recorded(Tier[Any]):
        def __getattribute__(self, name: str) -> Any:
            if name in OPERATIONS:
                called.add(name)
            return super().__getattribute__(name)

        def take(self, key: Key, mark: float, document: Any, body: bytes) -> bool:
            taken = super().take(key, mark, document, body)
            came_out.add(self.store.get(key))
            return taken

    setting = Setting(readers=2, writers=1, l1=Shipped(Recorded), local=1, link=True, lapse=False)
    search = Search(setting)
    assert search.run().wrong is None
    assert called == set(OPERATIONS)
    kept = search.kept()
    assert {each.entry for each in kept} <= came_out
    assert {each.mark is None for each in kept} == {True, False}
    assert all(l1.again(Shipped(), each) == each for each in kept)


OPERATIONS = ("get", "reserve", "take", "withdraw", "forget", "drop", "flush", "trust")


# What the search takes for granted


def _outcomes(pointer: Pointer) -> dict[str, Any]:
    """What every shipped function makes of a pointer, for somebody in it and a stranger."""
    known, other = tag(0, "a"), tag(0, "b")
    made: dict[str, Any] = {"prune": protocol.prune(pointer, NOW)}
    for token in ("r0", "r1", "w0", "w1", "stranger"):
        made |= {
            f"read {token}": protocol.read(pointer, known, token, LIVE, NOW),
            f"read {token}, other schema": protocol.read(pointer, other, token, LIVE, NOW),
            f"read {token}, no token": protocol.read(pointer, known, None, LIVE, NOW),
            f"fill {token}": protocol.fill(pointer, known, token, "1", NOW),
            f"renew {token}": protocol.renew(pointer, known, token, LIVE, NOW),
            f"give back {token}": protocol.give_back(pointer, known, token, NOW),
            f"elect {token}": protocol.elect(pointer, known, token, LIVE, NOW),
            f"intend {token}": protocol.intend(pointer, token, LIVE, NOW),
            f"done {token}": protocol.done(pointer, token, NOW),
            f"put {token}": protocol.put(pointer, known, "1", NOW),
        }
    return made


@cache
def _pointers() -> set[Pointer]:
    search = Search(replace(EVERYTHING, deploy=True, strays=False, unanswered=False))
    search.run()
    return search.pointers()


def test_what_has_lapsed_is_gone_for_every_function() -> None:
    seen = 0
    for pointer in _pointers():
        for _, over in lapsed(pointer):
            seen += 1
            assert _outcomes(over) == _outcomes(protocol.prune(over, NOW))
    assert seen >= 10


def test_the_order_of_write_ids_makes_no_difference() -> None:
    def unordered(result: Any) -> Any:
        if isinstance(result, Intent):
            return frozenset(result.ids)
        if isinstance(result, tuple):
            return tuple(unordered(each) for each in result)
        return result

    crowded = [each for each in _pointers() if isinstance(each, Intent) and len(each.ids) > 1]
    assert crowded
    for pointer in crowded:
        turned = Intent(pointer.ids[::-1])
        there, back = _outcomes(pointer), _outcomes(turned)
        assert {k: unordered(v) for k, v in there.items()} == {
            k: unordered(v) for k, v in back.items()
        }


class Unreduced(Search):
    """A search that takes every naming for a state of its own."""

    def representatives(self) -> set[State]:
        return {super(Unreduced, self)._canonical(each) for each in self.reached}

    def _canonical(self, state: State) -> State:
        return state


@pytest.mark.parametrize(
    "setting",
    [
        Setting(readers=3, writers=1, join=True, nothing=True),
        Setting(readers=2, writers=1, failover=True, refresh=True, join=True),
        Setting(readers=1, writers=2, refresh=True),
        Setting(readers=2, writers=1, l1=Shipped(), lapse=False, crash=False),
        Setting(readers=1, writers=2, l1=Shipped(), local=1, evict=False, lapse=False, crash=False),
    ],
    ids=["readers", "failover", "writers", "placeholders", "local writers"],
)
def test_symmetry_loses_no_state_and_adds_none(setting: Setting) -> None:
    reduced, unreduced = Search(setting), Unreduced(setting)
    found, all_found = reduced.run(), unreduced.run()
    assert (found.wrong, all_found.wrong) == (None, None)
    # A local writer and a remote one are not the same: there is nothing to gain, and nothing lost.
    assert found.states < all_found.states or setting.local
    assert found.states == len(unreduced.representatives())
