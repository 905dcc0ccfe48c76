"""The ``forze`` command: new projects, and servers for the length of a command.

:mod:`~forze_cli.command` has the options and what is said. ``forze new`` is a checked name
(:mod:`~forze_cli.names`), the requirement of this very forze (:mod:`~forze_cli.origin`), a
template rendered with them (:mod:`~forze_cli.project`) into a folder that is there whole or not
at all (:mod:`~forze_cli.placing`). ``forze servers`` is :mod:`~forze_cli.serving`.
"""

from __future__ import annotations

import atexit
import signal
import sys

from forze_cli.signals import ENDING

__all__ = ["main"]


def main() -> None:
    """Run the command line with this process's arguments, and end the process."""
    try:
        from forze_cli.command import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit(
            "forze: the command line needs typer, of an extra: python -m pip install 'forze[cli]'"
        )
    except KeyboardInterrupt:  # so early that nothing has begun
        sys.exit(130)
    atexit.register(_ignore_signals)
    app(prog_name="forze")


def _ignore_signals() -> None:
    """What is done is done: no signal gives the process another exit code while it ends."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
