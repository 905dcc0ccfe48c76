"""The recipe of the locks does what it says: the late write is refused, by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "examples" / "recipes" / "locks"


def test_a_paused_holders_late_write_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "main.py"],
        cwd=RECIPE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    story = [
        "first: holds",
        "is stopped",
        "second: holds",
        "second: wrote total 200",
        "goes on",
        "first: FencedOut",
        "total 200",
        "all torn down",
    ]
    told = iter(lines)
    for step in story:
        assert any(step in line for line in told), f"{step!r} is missing, or late:\n{done.stdout}"
    assert any("first: LockLost" in line for line in lines)
    tokens = [int(line.rsplit(" ", 1)[1]) for line in lines if "holds" in line]
    assert tokens == sorted(set(tokens))
