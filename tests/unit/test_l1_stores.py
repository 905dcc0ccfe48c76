"""The stores of the in-process tier: lifetimes, bounds, counts, and what each policy keeps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import accumulate, chain, count
from random import Random

import pytest

from forze.application.contracts.cache import L1Spec
from forze.application.integrations.document import (
    L1Stats,
    L1Store,
    LruL1Store,
    TinyLfuL1Store,
    lru_l1_store,
    tiny_lfu_l1_store,
)
from forze.application.integrations.document.l1.contest import Contest
from forze.application.integrations.document.l1.segments import Policy, Segments
from forze.application.integrations.document.l1.sketch import FrequencySketch
from forze.application.integrations.document.l1.store import PeekableL1Store

TTL = timedelta(seconds=10)
HOUR = timedelta(hours=1)
STORES = [LruL1Store, TinyLfuL1Store]


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest, clock: Clock) -> Callable[[int], L1Store]:
    kind: Callable[..., L1Store] = request.param
    return lambda capacity: kind(capacity=capacity, ttl=TTL, clock=clock)


def zipf(random: Random, keys: int, alpha: float, accesses: int) -> list[int]:
    weights = list(accumulate(1 / rank**alpha for rank in range(1, keys + 1)))
    return random.choices(range(keys), cum_weights=weights, k=accesses)


def replay(store: L1Store, keys: Iterable[object]) -> float:
    """Read each key, storing it where it is missing: the share of hits."""
    asked = hits = 0
    before = store.stats().hits
    for key in keys:
        asked += 1
        if store.get(key) is None:
            store.set(key, key)
        else:
            hits += 1
    assert store.stats().hits - before == hits
    return hits / asked


def both(capacity: int, keys: Sequence[object], seed: int = 5) -> tuple[float, float]:
    """The shares of hits of LRU and of the store that chooses."""
    lru = LruL1Store(capacity=capacity, ttl=HOUR)
    chooser = TinyLfuL1Store(capacity=capacity, ttl=HOUR, random=Random(seed))
    return replay(lru, keys), replay(chooser, keys)


def test_looking_counts_as_no_use(make: Callable[[int], L1Store], clock: Clock) -> None:
    store = make(2)
    assert isinstance(store, PeekableL1Store)
    store.set("a", 1)
    store.set("b", 2)
    before = store.stats()
    clock.now = 4.0
    assert store.peek("a") == (1, 6.0)
    assert store.peek("nothing") is None
    assert store.stats() == before
    clock.now = TTL.total_seconds()
    assert store.peek("a") is None
    assert store.stats() == before


def test_what_was_set_is_read_until_its_ttl_has_passed(
    make: Callable[[int], L1Store], clock: Clock
) -> None:
    store = make(4)
    store.set("k", "v")
    clock.now = 9.99
    assert store.get("k") == "v"
    clock.now = 10.0
    assert store.get("k") is None
    assert store.stats() == L1Stats(size=0, capacity=4, hits=1, misses=1, evictions=0)


def test_reading_does_not_prolong_and_setting_again_does(
    make: Callable[[int], L1Store], clock: Clock
) -> None:
    store = make(4)
    store.set("read", 1)
    store.set("set", 1)
    clock.now = 6
    assert store.get("read") == 1
    store.set("set", 2)
    clock.now = 12
    assert store.get("read") is None
    assert store.get("set") == 2
    assert store.stats().size == 1


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 50])
def test_size_stays_within_the_capacity_and_evictions_are_counted(
    make: Callable[[int], L1Store], capacity: int
) -> None:
    store = make(capacity)
    for key in range(200):
        store.set(key, str(key))
        assert store.get(key) == str(key), "the entry just set must be there"
        assert store.stats().size == min(key + 1, capacity)
    assert store.stats().evictions == 200 - capacity


def test_nothing_is_lost_while_there_is_room(make: Callable[[int], L1Store]) -> None:
    store = make(100)
    for key in range(100):
        store.set(key, key + 1)
    assert [store.get(key) for key in range(100)] == list(range(1, 101))
    assert store.stats().evictions == 0


def test_setting_over_an_entry_replaces_it_and_evicts_nobody(
    make: Callable[[int], L1Store],
) -> None:
    store = make(2)
    for value in ("one", "two"):
        store.set("a", value)
        store.set("b", value)
    assert (store.get("a"), store.get("b")) == ("two", "two")
    assert store.stats().evictions == 0


def test_invalidated_entries_are_gone_and_count_as_misses(make: Callable[[int], L1Store]) -> None:
    store = make(3)
    store.set("a", 1)
    store.set("b", 2)
    store.invalidate("a")
    store.invalidate("never there")
    assert (store.get("a"), store.get("b")) == (None, 2)
    assert store.stats() == L1Stats(size=1, capacity=3, hits=1, misses=1, evictions=0)


def test_clear_removes_all_and_keeps_the_counts(make: Callable[[int], L1Store]) -> None:
    store = make(5)
    for key in range(9):
        store.set(key, key)
    store.get(8)
    before = store.stats()
    store.clear()
    assert [store.get(key) for key in range(9)] == [None] * 9
    after = store.stats()
    assert (after.size, after.hits, after.evictions) == (0, before.hits, before.evictions)
    replay(make(5), range(9))


def test_keys_may_be_tuples_bytes_or_text(make: Callable[[int], L1Store]) -> None:
    store = make(3)
    for key in ("k", b"k", ("k", b"k")):
        store.set(key, [key])
    assert [store.get(key) for key in ("k", b"k", ("k", b"k"))] == [["k"], [b"k"], [("k", b"k")]]


def test_hit_ratio_is_hits_over_reads_and_zero_without_any() -> None:
    def stats(hits: int, misses: int) -> L1Stats:
        return L1Stats(size=0, capacity=1, hits=hits, misses=misses, evictions=0)

    assert [stats(0, 0).hit_ratio, stats(3, 1).hit_ratio] == [0.0, 0.75]


@pytest.mark.parametrize("factory", [lru_l1_store, tiny_lfu_l1_store])
def test_a_factory_makes_what_the_spec_asks_for(factory: Callable[[L1Spec], L1Store]) -> None:
    spec = L1Spec(ttl=timedelta(milliseconds=1), capacity=2, store_factory=factory)
    store = factory(spec)
    assert store.stats().capacity == 2
    store.set("k", "v")
    for _ in range(1_000_000):
        if store.get("k") is None:
            break
    assert store.stats().size == 0, "a millisecond must end"


def test_lru_evicts_the_least_recently_used(clock: Clock) -> None:
    store = LruL1Store(capacity=3, ttl=TTL, clock=clock)
    for key in "abc":
        store.set(key, key)
    store.get("a")
    store.set("b", "again")
    store.set("d", "d")
    assert [store.get(key) for key in "abcd"] == ["a", "again", None, "d"]


def scanned(random: Random) -> Iterator[int]:
    """A hot set, and between any two reads of it a key never seen again."""
    return chain.from_iterable(zip(zipf(random, 2_000, 1.0, 30_000), count(10_000), strict=False))


def test_a_scan_does_not_drive_out_the_hot_set() -> None:
    lru, chooser = both(200, list(scanned(Random(1))))
    assert chooser > lru + 0.05


@pytest.mark.parametrize("capacity", [100, 500, 900])
def test_a_loop_larger_than_the_cache_still_hits(capacity: int) -> None:
    lru, chooser = both(capacity, list(range(1_000)) * 40)
    assert lru == 0.0
    assert chooser > 0.8 * capacity / 1_000


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("capacity", [200, 500])
def test_work_that_moves_on_is_served_about_as_by_lru(capacity: int, seed: int) -> None:
    random = Random(seed)
    place, keys = 0, []
    for _ in range(60_000):
        place += random.randint(-20, 20)
        keys.append(place)
    lru, chooser = both(capacity, keys, seed)
    assert 0.2 < lru < 0.95
    assert chooser > lru - 0.01


@pytest.mark.parametrize("seed", range(3))
def test_the_policy_follows_when_the_accesses_change(seed: int) -> None:
    random, place, walk = Random(seed), 5_000, []
    for _ in range(40_000):
        place += random.randint(-20, 20)
        walk.append(place)
    loop = list(range(1_000)) * 40
    chooser = TinyLfuL1Store(capacity=500, ttl=HOUR, random=random)
    lru = LruL1Store(capacity=500, ttl=HOUR)
    ours = [replay(chooser, phase) for phase in (loop, walk, loop)]
    book = [replay(lru, phase) for phase in (loop, walk, loop)]
    assert (book[0], book[2]) == (0.0, 0.0)
    assert ours[0] > 0.4
    assert ours[1] > book[1] - 0.04, "the loop's hits count for too long"
    assert ours[2] > 0.25


def test_nothing_is_decided_by_chance() -> None:
    """Among accesses that serve every policy alike, few stores of many find a best one."""
    undecided = 0
    for seed in range(20):
        random = Random(seed)
        contest = Contest(64, FrequencySketch(64), random)
        for _ in range(2_000):
            contest.watch(hash_of(random.randrange(128)))
        undecided += contest.best is Policy.UNDECIDED
    assert undecided > 10


def test_a_dead_victim_is_no_rival(clock: Clock) -> None:
    store = Segments(10, Policy.FREQUENCY, FrequencySketch(10), hash, Random(1))
    for key in range(10):
        store.admit(key, key, (key, 5.0), 0.0)
    for key in (10, 11):
        store.admit(key, key, (key, 15.0), 6.0)
    assert (store.use(10), store.use(0)) == ((10, 15.0), None)


def test_only_a_lead_of_two_uses_takes_a_place_in_main() -> None:
    sketch = FrequencySketch(10)
    store = Segments(10, Policy.FREQUENCY, sketch, hash_of, Random(1))
    for key in range(10):
        sketch.add(hash_of(key))
        store.admit(key, hash_of(key), (key, 1e9), 0.0)
    for newcomer, uses in ((10, 2), (11, 3), (12, 1)):
        for _ in range(uses):
            sketch.add(hash_of(newcomer))
        store.admit(newcomer, hash_of(newcomer), (newcomer, 1e9), 0.0)
    assert [store.use(key) is not None for key in (0, 9, 10, 11, 12)] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_a_window_that_shrinks_forgets_the_reuse_of_those_that_leave_it() -> None:
    store = Segments(30, Policy.RECENCY, FrequencySketch(30), hash_of, Random(1))
    for key in range(30):
        store.admit(key, hash_of(key), (key, 1e9), 0.0)
    store.follow(Policy.REUSE)
    for key in range(30):
        store.use(key)
    for key in range(30, 60):
        store.admit(key, hash_of(key), (key, 1e9), 0.0)
    assert len(store._window) == 3
    assert store._reused <= set(store._window)


def test_the_protected_part_shrinks_after_a_change_of_policy() -> None:
    store = Segments(100, Policy.FREQUENCY, FrequencySketch(100), hash_of, Random(1))
    for key in range(100):
        store.admit(key, hash_of(key), (key, 1e9), 0.0)
    for key in range(100):
        store.use(key)
    assert len(store._protected) == 79
    store.follow(Policy.REUSE)
    for key in range(20):
        store.use(key)
    assert len(store._protected) == 72


def hash_of(key: object) -> int:
    return hash(("tests", key))


class Colliding:
    """A key whose hash is that of every other: the worst that whoever knew the hash could send."""

    def __init__(self, name: int) -> None:
        self.name = name

    def __hash__(self) -> int:
        return 42

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Colliding) and other.name == self.name


def test_colliding_keys_cannot_pin_the_cache() -> None:
    sketch = FrequencySketch(20)
    store = Segments(20, Policy.FREQUENCY, sketch, lambda key: 42, Random(1))
    for _ in range(100):
        sketch.add(42)
    for name in range(20):
        store.admit(Colliding(name), 42, (name, 1e9), 0.0)
    for name in range(20, 20_000):
        sketch.add(42)
        store.admit(Colliding(name), 42, (name, 1e9), 0.0)
    left = [name for name in range(20) if store.use(Colliding(name)) is not None]
    assert left == []


def test_stores_hash_with_secrets_of_their_own() -> None:
    """The same keys share counters in one store and not in another."""
    one, other = (TinyLfuL1Store(capacity=100, ttl=TTL) for _ in range(2))
    for store in (one, other):
        for key in range(20):
            store.get(key)
    assert sum(one._counts) == sum(other._counts) == 20
    assert one._counts != other._counts


def test_reads_are_counted_as_the_sketch_counts() -> None:
    store = TinyLfuL1Store(capacity=100, ttl=HOUR, random=Random(6))
    book = FrequencySketch(100)
    for key in zipf(Random(7), 300, 1.0, 900):
        store.get(key)
        book.add(store._hash_of(key))
    assert store._counts == book.counts


@pytest.mark.parametrize("between", [None, "set", "get"])
def test_a_key_missed_and_stored_in_another_copy_is_stored_once(between: str | None) -> None:
    """A store may remember that a key was missing only until something was stored."""
    store = TinyLfuL1Store(capacity=8, ttl=HOUR, random=Random(1))
    key, twin = (("tenant", bytes([number])) for number in (1, 1))
    assert key is not twin
    assert store.get(key) is None
    store.set(twin, "of another")
    if between == "set":
        store.set("other", 1)
    elif between == "get":
        store.get("other")
    store.set(key, "mine")
    assert (store.get(key), store.get(twin)) == ("mine", "mine")
    assert store.stats().size == (2 if between == "set" else 1)
    store.invalidate(twin)
    assert store.get(key) is None


def test_a_seeded_store_behaves_the_same_again() -> None:
    keys = zipf(Random(2), 3_000, 0.8, 20_000)
    assert both(150, keys) == both(150, keys)


def test_the_lru_store_is_the_textbook_lru() -> None:
    keys = zipf(Random(3), 500, 0.7, 5_000)
    book: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in keys:
        if key in book:
            hits += 1
            book.move_to_end(key)
        else:
            book[key] = None
            if len(book) > 60:
                book.popitem(last=False)
    assert replay(LruL1Store(capacity=60, ttl=HOUR), keys) == hits / len(keys)


def test_the_sketch_counts_and_forgets() -> None:
    sketch = FrequencySketch(100)
    always, often, once, never = 1, 2, 3, 4  # of text the hash, and what it falls on, are by chance
    for _ in range(9):
        sketch.add(hash_of(often))
    for _ in range(20):
        sketch.add(hash_of(always))
    sketch.add(hash_of(once))

    def estimates() -> list[int]:
        return [sketch.estimate(hash_of(key)) for key in (always, often, once, never)]

    sketch.age(999)
    assert estimates() == [15, 9, 1, 0]
    sketch.age(1)
    assert estimates() == [7, 4, 0, 0]
    sketch.age(499)
    assert estimates() == [7, 4, 0, 0]
    sketch.age(1)
    assert estimates() == [3, 2, 0, 0]


def test_the_store_lets_its_sketch_forget() -> None:
    store = TinyLfuL1Store(capacity=64, ttl=HOUR, random=Random(1))
    for _ in range(15):
        store.get("often")
    for key in range(5_000):
        store.get(key)
    assert max(store._counts) < 8
