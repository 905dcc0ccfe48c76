"""The recipes of counters and of search-result snapshots, run as their users run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forze.testing.servers import ValkeyServer

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"

TOLD = {
    "counters": (
        r"^1,000 increments at once: 1,000 different numbers; then a block: range\(1001, 1011\)$",
        r"^20 customers, 3 in stock: 3 sold, 0 left$",
        r"^an answer was lost: outcome 'unknown'$",
        r"^the same call under the same id: 5; counted 5$",
        r"^an id by incr\(\): \d+ us; out of a block of 1,000: \d+\.\d us$",
        r"^3 workers killed: [\d,]+ ids printed, 0 of them twice, \d+ never used$",
    ),
    "search_snapshots": (
        r"^page 1 of 7 products: prices \[10, 20, 30\]$",
        r"^page 2: prices \[5, 60\], 1 removed since$",
        r"^page 3: prices \[70\], 0 removed since$",
        r"^bob with ann's cursor: refused$",
        r"^ann with a cursor that was changed: refused$",
        r"^a second later: products: .* expired",
        r"^rebuilt: prices \[30, 60, 70\], rebuilt=True$",
        r"^50 equal searches at once: 1 snapshot$",
        r"^100,000 of 100,001 ids frozen in \d+ ms \(truncated=True\)",
        r"^a writer killed before its last part: the run is complete, of the story$",
        r"^deleted, with what was left of the writer: missing$",
    ),
}


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("server", ["its own", "the user's"])
def test_it_tells_the_story_and_leaves_nothing(
    name: str, server: str, own_valkey: ValkeyServer, tmp_path: Path
) -> None:
    dsn = own_valkey.dsn if server == "the user's" else ""
    own_valkey.ask("SET", "theirs", "1")
    done = subprocess.run(
        [sys.executable, "-W", "error", "main.py"],
        cwd=RECIPES / name,
        env={**os.environ, "REDIS_DSN": dsn, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for line in TOLD[name]:
        assert re.search(line, done.stdout, re.MULTILINE), (line, done.stdout)
    assert own_valkey.ask("KEYS", "*").split()[2::2] == [b"theirs"]
    assert list(tmp_path.iterdir()) == []
