"""The whole shop by one command: servers, two replicas, a worker, customers, and the books.

``python main.py [--seconds 10] [--chaos] [--stay]``. Everything it starts is gone when it ends,
on Ctrl-C and on failure too. The exit status is 0 when nothing went wrong that may not.
"""

from __future__ import annotations

import argparse
import signal
import sys


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="how long the customers come")
    parser.add_argument("--customers", type=int, default=16, help="how many at once")
    parser.add_argument("--chaos", action="store_true", help="payments fail, then Valkey is killed")
    parser.add_argument("--stay", action="store_true", help="stay open until Ctrl-C")
    return parser.parse_args()


def main() -> int:
    """Everything, from nothing to nothing; the exit status."""
    asked = options()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        from day import a_day  # takes a moment, in which Ctrl-C may come already

        return a_day(asked)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
