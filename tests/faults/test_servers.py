"""A server for tests leaves nothing behind, whenever its start is broken off."""

from __future__ import annotations

import atexit
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from forze.testing.servers import Server, ValkeyServer

STEPS = 25


def test_ctrl_c_at_any_step_of_a_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    reached = 0
    for step in range(STEPS):
        steps = itertools.count()

        def at_each_line(
            frame: FrameType, event: str, _: object, step: int = step, steps: Any = steps
        ) -> Any:
            inside = frame.f_code is Server.start.__code__ or frame.f_code.co_name == "mkdir"
            if inside and next(steps) == step:
                sys.settrace(None)
                raise KeyboardInterrupt
            return at_each_line

        server, before = ValkeyServer(), sys.gettrace()
        try:
            sys.settrace(at_each_line)
            server.start()
        except KeyboardInterrupt:
            reached += 1
        finally:
            sys.settrace(before)
        for each in at_exit:
            each()
        at_exit.clear()
        assert list(tmp_path.iterdir()) == [], step
        assert not server.running
    assert reached > 8
