"""A folder that is there whole or not at all.

It is filled under a hidden name beside its own and renamed when it is finished.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from forze.errors import ConfigurationError, ConflictError


def free_place(into: Path, name: str) -> Path:
    """Where ``into / name`` is, which must not exist as anything; ConflictError if it does."""
    try:
        folder = into.absolute() if into.is_dir() else None
    except OSError:  # a name too long, a folder that may not be looked into, one that is gone
        folder = None
    if folder is None:
        raise ConfigurationError(f"{into} is no folder to make {name} in", name=str(into))
    target = folder / name
    if os.path.lexists(target):
        raise _occupied(target)
    return target


def place(target: Path, fill: Callable[[Path], None], check: Callable[[], None]) -> None:
    """Make the folder ``target`` of what ``fill`` writes into the folder it is given.

    ``check`` is called when all is written, and may raise. ConflictError if something took the
    place in the meantime; ConfigurationError if it cannot be written. After any exception there
    is nothing.
    """
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir()
        fill(draft)
        check()
        _move(draft, target)
    except OSError as error:
        check()
        where = error.filename or target.parent
        raise ConfigurationError(f"cannot write {where}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _move(draft: Path, target: Path) -> None:
    try:
        target.mkdir()  # of two who come here one gets it; renaming alone replaces empty folders
    except FileExistsError:
        raise _occupied(target) from None
    try:
        draft.rename(target)
    except OSError:
        with contextlib.suppress(OSError):
            target.rmdir()
        raise


def _occupied(target: Path) -> ConflictError:
    return ConflictError(
        f"{target} exists already, and nothing was written; take another name, or another folder "
        "with --into",
        resource=str(target),
    )
