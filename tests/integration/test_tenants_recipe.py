"""The tenants recipe tells the story its README promises, on servers of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "examples" / "recipes" / "tenants"


def test_the_story() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "main.py"],
        cwd=RECIPE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout
    steps = re.findall(r"^\| ([\w ]+) \|", (RECIPE / "README.md").read_text(), re.MULTILINE)
    assert [line for line in said.splitlines() if line in steps] == steps[1:]
    assert "there is none" in said
    assert "invoice numbers [1, 1]" in said
    done_of = re.search(r"(\d+) requests over three rotations, (\d+) counted", said)
    assert done_of is not None
    assert int(done_of[1]) == int(done_of[2]) > 100
    assert "it reads what it writes: total 2" in said
    assert "does not permit the command" in said
