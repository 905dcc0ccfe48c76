"""The project's own files, as the tests of this folder look at them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

_NOT_OURS = {"__pycache__", "build", "dist", "out", "node_modules"}


def files(*suffixes: str, under: str = ".") -> Iterator[Path]:
    """Every file of the tree with one of the suffixes; caches and environments left out."""
    for folder, folders, names in os.walk(ROOT / under):
        folders[:] = sorted(
            each
            for each in folders
            if each not in _NOT_OURS
            and not each.endswith(".egg-info")
            and (not each.startswith(".") or each in {".ci", ".github"})
            and not (Path(folder) / each / "pyvenv.cfg").exists()
        )
        for name in sorted(names):
            if not suffixes or name.endswith(suffixes):
                yield Path(folder) / name


def shown(path: Path) -> str:
    """``path`` as seen from the root of the tree."""
    return path.relative_to(ROOT).as_posix()
