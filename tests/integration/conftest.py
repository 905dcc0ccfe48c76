"""A place for processes that start servers of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary directory that every user can enter, short enough for Unix sockets in it."""
    with tempfile.TemporaryDirectory(prefix="r-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
