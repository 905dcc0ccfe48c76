"""What a worker is told, as its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """``capacity`` 0: no L1. ``pause`` and ``heartbeat`` in seconds."""

    process: int
    seed: int
    operations: int
    documents: int
    pause: float
    redis: str
    postgres: str
    heartbeat: float
    capacity: int
    push: int
    logs: Path

    def arguments(self) -> list[str]:
        """Itself as a command line."""
        return [f"--{name}={getattr(self, name)}" for name in self.__slots__]

    @classmethod
    def parse(cls, arguments: Sequence[str] | None = None) -> Orders:
        """Itself from a command line."""
        parser = argparse.ArgumentParser(prog="python -m tests.judge.worker")
        for name in ("process", "seed", "operations", "documents", "capacity", "push"):
            parser.add_argument(f"--{name}", type=int, required=True)
        for name in ("redis", "postgres"):
            parser.add_argument(f"--{name}", required=True)
        for name in ("pause", "heartbeat"):
            parser.add_argument(f"--{name}", type=float, required=True)
        parser.add_argument("--logs", type=Path, required=True)
        return cls(**vars(parser.parse_args(arguments)))
