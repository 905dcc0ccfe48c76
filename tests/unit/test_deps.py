"""Dependencies: what is found under which key and name, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from forze.application.contracts.idempotency import IdempotencyDepKey
from forze.application.execution import DepKey, Deps, DepsPlan, DepsRegistry
from forze.errors import ConfigurationError
from forze_memory import MemoryDepsModule
from forze_redis import RedisClient, RedisDepsModule

NUMBER: DepKey[int] = DepKey("number")
TEXT: DepKey[str] = DepKey("text")


def test_a_plain_entry_answers_every_name() -> None:
    deps = Deps.plain({NUMBER: 1})
    assert deps.provide(NUMBER) == 1
    assert deps.provide(NUMBER, "any") == 1
    assert deps.exists(NUMBER)
    assert deps.exists(NUMBER, "any")
    assert not deps.exists(TEXT)


def test_a_routed_entry_answers_its_names_only() -> None:
    deps = Deps.routed({NUMBER: {"a": 1, "b": 2}})
    assert (deps.provide(NUMBER, "a"), deps.provide(NUMBER, "b")) == (1, 2)
    assert deps.exists(NUMBER, "a")
    assert not deps.exists(NUMBER, "c")
    assert not deps.exists(NUMBER)


def test_a_routed_entry_comes_before_a_plain_one() -> None:
    deps = Deps(plain={NUMBER: 0}, routed={NUMBER: {"a": 1}})
    assert (deps.provide(NUMBER, "a"), deps.provide(NUMBER, "b"), deps.provide(NUMBER)) == (1, 0, 0)


def test_a_false_entry_is_an_entry() -> None:
    deps = Deps(plain={TEXT: ""}, routed={NUMBER: {"a": 0}})
    assert deps.provide(TEXT) == ""
    assert deps.provide(NUMBER, "a") == 0


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    deps = Deps.routed({NUMBER: {"b": 1, "a": 2}})
    with pytest.raises(ConfigurationError, match=r"no number .* 'c'.*registered are: a, b") as info:
        deps.provide(NUMBER, "c")
    assert (info.value.name, info.value.known) == ("c", ("a", "b"))
    with pytest.raises(ConfigurationError, match="registered are: none"):
        deps.provide(TEXT, "c")


def test_an_unknown_key_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigurationError, match="no text is registered; registered are: number"):
        Deps.plain({NUMBER: 1}).provide(TEXT)
    with pytest.raises(ConfigurationError, match="registered are: none"):
        Deps().provide(TEXT)
    with pytest.raises(ConfigurationError, match="registered are: number"):
        Deps.routed({NUMBER: {"a": 1}}).provide(NUMBER)


def test_what_was_handed_in_can_change_without_effect() -> None:
    plain: dict[DepKey[Any], Any] = {NUMBER: 1}
    routes = {"a": 1}
    deps = Deps(plain=plain, routed={TEXT: routes})
    plain.clear()
    routes.clear()
    assert deps.provide(NUMBER) == 1
    assert deps.exists(TEXT, "a")


def test_merging_keeps_every_entry() -> None:
    merged = Deps.merge(
        Deps.plain({NUMBER: 1}),
        Deps.routed({NUMBER: {"a": 2}}),
        Deps(plain={TEXT: "t"}, routed={NUMBER: {"b": 3}}),
    )
    assert merged.provide(NUMBER) == 1
    assert merged.provide(NUMBER, "a") == 2
    assert merged.provide(NUMBER, "b") == 3
    assert merged.provide(TEXT) == "t"
    assert not Deps.merge().exists(NUMBER)


def test_merging_leaves_its_parts_as_they_were() -> None:
    part = Deps.routed({NUMBER: {"a": 1}})
    Deps.merge(part, Deps.routed({NUMBER: {"b": 2}}))
    assert not part.exists(NUMBER, "b")


def test_every_conflict_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"twice: number, text\[a\], text\[b\]") as info:
        Deps.merge(
            Deps(plain={NUMBER: 1}, routed={TEXT: {"a": "1", "b": "1", "c": "1"}}),
            Deps(plain={NUMBER: 2}, routed={TEXT: {"a": "2", "b": "2", "d": "2"}}),
        )
    assert info.value.known == ("number", "text[a]", "text[b]")


def test_one_object_registered_twice_is_no_conflict() -> None:
    client = object()
    key: DepKey[object] = DepKey("client")
    merged = Deps.merge(Deps.plain({key: client}), Deps.plain({key: client}))
    assert merged.provide(key) is client


def test_a_registry_is_open_and_a_plan_is_frozen() -> None:
    empty = DepsRegistry.from_modules()
    one = empty.with_modules(lambda: Deps.plain({NUMBER: 1}))
    both = one.with_modules(lambda: Deps.plain({TEXT: "t"}))
    assert [len(each.modules) for each in (empty, one, both)] == [0, 1, 2]
    plan = both.freeze()
    assert isinstance(plan, DepsPlan)
    assert plan.freeze() is plan
    assert not hasattr(plan, "with_modules")
    assert plan.build().provide(NUMBER) == 1
    assert plan.build().provide(TEXT) == "t"


def test_both_spellings_are_one_thing() -> None:
    def module() -> Deps:
        return Deps.plain({NUMBER: 1})

    assert DepsPlan.from_modules(module) == DepsRegistry.from_modules(module).freeze()
    merged = DepsPlan.from_modules(
        lambda: Deps.merge(module(), Deps.routed({TEXT: {"a": "t"}})),
    ).build()
    assert (merged.provide(NUMBER), merged.provide(TEXT, "a")) == (1, "t")


def test_conflicts_between_modules_show_when_the_plan_is_built() -> None:
    plan = DepsPlan.from_modules(
        lambda: Deps.routed({NUMBER: {"a": 1}}), lambda: Deps.routed({NUMBER: {"a": 2}})
    )
    with pytest.raises(ConfigurationError, match=r"number\[a\]"):
        plan.build()


def test_a_module_must_return_deps() -> None:
    wrong: Any = dict
    with pytest.raises(ConfigurationError, match="returned dict, not Deps"):
        DepsPlan.from_modules(wrong).build()


def test_a_fallback_yields_to_what_another_module_registers() -> None:
    mine, theirs = Deps(fallback={NUMBER: 1}), Deps(plain={NUMBER: 2})
    assert mine.exists(NUMBER, "any")
    assert mine.provide(NUMBER) == 1
    assert Deps.merge(mine, theirs).provide(NUMBER) == 2
    assert Deps.merge(theirs, mine).provide(NUMBER, "any") == 2
    assert Deps.merge(mine, Deps(routed={NUMBER: {"a": 3}})).provide(NUMBER, "a") == 3
    with pytest.raises(ConfigurationError, match="registered twice: number"):
        Deps.merge(mine, Deps(fallback={NUMBER: 4}))


def test_one_config_for_every_name_stands_beside_the_memory_module() -> None:
    redis = RedisDepsModule(client=RedisClient(), idempotency={"namespace": "app:once"})
    deps = DepsPlan.from_modules(MemoryDepsModule(), redis).build()
    assert deps.provide(IdempotencyDepKey, "payments") is redis().provide(IdempotencyDepKey)
