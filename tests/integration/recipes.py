"""Recipes as processes, started as their users start them, and what they leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


@contextmanager
def started(
    recipe: str,
    directory: Path,
    *step: str,
    stdout: int = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """The recipe, or one step of it, as a process whose temporary files are in ``directory``."""
    file, *arguments = step or ("main.py",)
    process = subprocess.Popen(
        [sys.executable, "-u", "-W", "error", file, *arguments],
        cwd=RECIPES / recipe,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={
            **{name: value for name, value in os.environ.items() if not name.endswith("_DSN")},
            "TMPDIR": str(directory),
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environment or {}),
        },
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def left_behind(directory: Path) -> list[str]:
    """Processes that work in ``directory``, and files in it."""
    running = [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and str(directory) in _command_line(entry)
    ]
    return [*running, *(each.name for each in directory.iterdir())]


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""
