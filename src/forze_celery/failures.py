"""A task's failure, as whoever waits for its result gets it: the error that was raised.

Celery writes an exception into JSON as its class and ``args`` and rebuilds it by calling the
class. Errors of forze carry data by keyword: called so they fail, or say something else. So their
data is written beside what Celery writes, and the error is put together from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial, reduce
from typing import Any, Final

from celery import Celery

from forze.errors import ForzeError

KEY: Final = "forze"
"""Where the data stands in what is stored of a failure."""


def carry_errors(app: Celery) -> None:
    """Let the result backends that ``app`` makes from now on write and read forze's errors."""
    if not isinstance(app._get_backend, _Carrying):
        app._get_backend = _Carrying(app._get_backend)


class _Carrying:
    """What makes a result backend, one that carries errors."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self) -> Any:
        backend = self._make()
        backend.prepare_exception = partial(_write, backend.prepare_exception)
        backend.exception_to_python = partial(_read, backend.exception_to_python)
        return backend


def _write(prepare: Callable[..., Any], exc: BaseException, serializer: str | None = None) -> Any:
    written = prepare(exc, serializer)
    if isinstance(exc, ForzeError) and isinstance(written, dict):  # a pickle is whole as it is
        written[KEY] = {name: _plain(value) for name, value in vars(exc).items()}
    return written


def _read(read: Callable[[Any], Any], written: Any) -> Any:
    data = written.get(KEY) if isinstance(written, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("message"), str):
        return read(written)
    cls = _class_named(str(written.get("exc_module")), str(written.get("exc_type")))
    if cls is None:
        return read(written)
    error = cls.__new__(cls, data["message"])
    vars(error).update({name: _value(each) for name, each in data.items()})
    return error


def _class_named(module: str, name: str) -> type[ForzeError] | None:
    """An error's class that this process has; nothing is imported because a message says so."""
    found: Any = reduce(
        lambda inside, part: getattr(inside, part, None), name.split("."), sys.modules.get(module)
    )
    return found if isinstance(found, type) and issubclass(found, ForzeError) else None


def _plain(value: object) -> Any:
    """As JSON; None for what does not leave its process."""
    if isinstance(value, timedelta):
        return {"seconds": value.total_seconds()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float) else None


def _value(plain: Any) -> Any:
    if isinstance(plain, dict):
        return timedelta(seconds=plain["seconds"])
    return tuple(map(_value, plain)) if isinstance(plain, list) else plain
