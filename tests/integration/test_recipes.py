"""Every short recipe, run as its users run it: it tells its story and leaves nothing behind."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from tests.integration.recipes import RECIPES, left_behind, started

from forze.testing.servers import ValkeyServer

TOLD = {
    "celery": (
        r"starting Valkey and a worker ...",
        r"-- a price that nobody knew, .* at once: 40 and 40, found out 1 time\(s\)",
        r"-- a report that a task makes under a lock: 409 for the web process",
        r"   made by the worker",
        r"-- three requests publish a task each: for acme, for None, for bolt",
        r"-- the process that charges is killed .*: 2 attempts, charged 1 time\(s\)",
        r"all torn down",
    ),
    "counters": (
        r"1,000 increments at once: 1,000 different numbers; then a block: range\(1001, 1011\)",
        r"20 customers, 3 in stock: 3 sold, 0 left",
        r"an answer was lost: outcome 'unknown'",
        r"the same call under the same id: 5; counted 5",
        r"an id by incr\(\): \d+ us; out of a block of 1,000: \d+\.\d us",
        r"3 workers killed: [\d,]+ ids printed, 0 of them twice, \d+ never used",
    ),
    "fastapi": (
        r".*201 lamp 40 rev=1.*",
        r".*201 lamp 40 rev=1.*",
        r"-- the table is gone.*",
        r"\s*304",
        r".*200 lamp 35 rev=2.*",
        r".*412 .*",
        r".*428 .*",
        r".*200 chair 90, lamp 35, and more",
        r".*200 vase 20, and no more",
        r".*422 .* colour: .*",
        r"-- documented: products_get, .*products_create.*",
        r"all torn down",
    ),
    "fastapi_rc": (
        r".*'cached': False.*",
        r".*'cached': True.*",
        r"   50 requests at once: 1 answer, 1 load",
        r".*'price': 35.*",
        r"-- Redis is stopped.*",
        r".*is away, calls fail at once.*",
        r"   10 of 10 answered, [12] of them after more than 0\.4 s",
        r"   what needs Redis: 503, Retry-After 1",
        r"-- Redis goes on.*: 200",
        r"   100 reads, 4 queries",
        r"   an order more: 2 lists invalidated",
        r"all torn down",
    ),
    "idempotency": (
        r".*charged 1 time, 10 answers.*",
        r".*used before with another payload.*",
        r".*generation 2, takeover=True.*",
        r".*fenced out; its generation 1 is below 2.*",
        r".*third attempt: answered 'ordered' again.*",
        r".*orders in the database: 1",
    ),
    "locks": (
        r".*first: holds.*",
        r".*is stopped.*",
        r".*second: holds.*",
        r".*second: wrote total 200.*",
        r".*goes on.*",
        r".*first: LockLost.*",
        r".*first: FencedOut.*",
        r".*total 200.*",
        r"all torn down",
    ),
    "redis_manager": (
        r"-- the database was asked 1 time\(s\)",
        r'\s*200 \{"deleted":3\}',
        r"-- of user 70 there is still: .*Bob.*",
        r"-- a slow reader put 'Anna' back after the change: .*",
        r"-- 200 at once with a limit of 10: 10 went through, 190 were refused",
        r"-- the id from before the change of password:",
        r"\s*401 .*",
        r"-- the one from then on:",
        r'\s*200 \{"theme":"dark","user_id":7\}',
        r'\s*200 \{"revoked":2\}',
        r"\s*401 .*",
        r"-- two tasks, one result: computed by process \d+ at .*",
        r"-- Valkey is killed",
        r"\s*503 .*unhealthy.*",
        r'\s*200 \{"id":7,"name":"Annabel"\}',
        r"\s*503 .*Rate limits are unavailable.*",
        r"-- Valkey is back",
        r'\s*200 \{"status":"healthy"\}',
        r"all torn down",
    ),
    "resilience": (
        r"-- 10 of 200 went through",
        r".*first: opened the circuit with \d+ failures.*",
        r"-- the second knew -?\d+ ms later",
        r".*first: probes.*",
        r".*second: paid, after \d+ refusals; the circuit is closed",
        r"all torn down",
    ),
    "response_cache": (
        r"-- 100 requests at once to two replicas: computed 1 time\(s\)",
        r"\s*304 .*hit.*",
        r"two: PUT .*",
        r'\s*200 \{"product":1,"price":35\} .*uri-miss.*',
        r'\s*200 "the basket of ann" .*uri-miss.*',
        r'\s*200 "the basket of bob" .*uri-miss.*',
        r'\s*200 "the basket of ann" .*hit.*',
        r"all torn down",
    ),
    "search_snapshots": (
        r"page 1 of 7 products: prices \[10, 20, 30\]",
        r"page 2: prices \[5, 60\], 1 removed since",
        r"page 3: prices \[70\], 0 removed since",
        r"bob with ann's cursor: refused",
        r"ann with a cursor that was changed: refused",
        r"a second later: products: .* expired.*",
        r"rebuilt: prices \[30, 60, 70\], rebuilt=True",
        r"50 equal searches at once: 1 snapshot",
        r"100,000 of 100,001 ids frozen in \d+ ms \(truncated=True\).*",
        r"a writer killed before its last part: the run is complete, of the story",
        r"deleted, with what was left of the writer: missing",
    ),
    "tenants": (
        r".*there is none.*",
        r".*invoice numbers \[1, 1\].*",
        r".*it reads what it writes: total 2.*",
        r".*?(\d{3,}) requests over three rotations, \1 counted.*",
        r".*does not permit the command.*",
    ),
}
"""Lines of each story, in their order."""

recipe = pytest.mark.parametrize("name", TOLD)


def test_each_recipe_has_its_story_here() -> None:
    assert {each.parent.name for each in RECIPES.glob("*/main.py")} == {*TOLD, "cache_reads"}


def untold(name: str, short_path: Path, environment: dict[str, str] | None = None) -> list[str]:
    """Run it to its end; the lines of its story that are missing, or come too early."""
    with started(name, short_path, environment=environment) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, ""), output
    lines = iter(output.splitlines())
    return [
        wanted for wanted in TOLD[name] if not any(re.fullmatch(wanted, line) for line in lines)
    ]


@recipe
def test_it_tells_its_story_and_leaves_nothing(name: str, short_path: Path) -> None:
    assert untold(name, short_path) == []
    assert left_behind(short_path) == []


@pytest.mark.parametrize("name", ["counters", "search_snapshots"])
def test_on_a_server_of_the_users_own_it_cleans_up(
    name: str, own_valkey: ValkeyServer, short_path: Path
) -> None:
    own_valkey.ask("SET", "theirs", "1")
    assert untold(name, short_path, {"REDIS_DSN": own_valkey.dsn}) == []
    assert own_valkey.ask("KEYS", "*").split()[2::2] == [b"theirs"]
    assert left_behind(short_path) == []


@recipe
def test_interrupted_it_leaves_nothing(name: str, short_path: Path) -> None:
    with started(name, short_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode != 0
    assert left_behind(short_path) == []
