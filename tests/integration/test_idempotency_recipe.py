"""The idempotency recipe tells its story."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "examples" / "recipes" / "idempotency"


def test_the_recipe_tells_its_story() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(RECIPE / "main.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "charged 1 time, 10 answers",
        "used before with another payload",
        "generation 2, takeover=True",
        "fenced out; its generation 1 is below 2",
        "third attempt: answered 'ordered' again",
        "orders in the database: 1",
    ):
        assert words in done.stdout
