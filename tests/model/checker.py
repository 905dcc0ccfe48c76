"""Prints what the model checker finds.

``python -m tests.model.checker [-v] [--full] [name part ...]``

The first table has the protocol as shipped under every variant, the second the mutations.
Columns: states explored, seconds, states with a leftover that the documentation admits, and
the result; for a violation the length of the shortest way to it. ``-v`` tells that way,
``--full`` adds the variants that take minutes.
The exit status is 1 if any row is not as expected; a state cap that is reached never is.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence

from tests.model.mutations import MUTATIONS, Mutation
from tests.model.search import Outcome, Search
from tests.model.variants import VARIANTS, Variant

HEADER = f"{'states':>9}{'seconds':>9}{'admitted':>9}  result"


def as_expected(case: Variant | Mutation, outcome: Outcome) -> bool:
    """Whether what was found is what should be."""
    found = outcome.wrong and outcome.wrong.split(":")[0]
    return found == case.expected


def row(case: Variant | Mutation, outcome: Outcome) -> str:
    """One line of a table."""
    result = f"{len(outcome.trace)} steps, {outcome.wrong}" if outcome.wrong else "holds"
    if not as_expected(case, outcome):
        result += f"  (NOT AS EXPECTED: {case.expected or 'holds'})"
    figures = f"{outcome.states:9}{outcome.seconds:9.1f}{outcome.documented:9}"
    return f"{case.name:66}{figures}  {result}"


def main(arguments: Sequence[str]) -> int:
    verbose = "-v" in arguments
    parts = [each for each in arguments if each not in ("-v", "--full")]
    failed = False
    tables: tuple[tuple[str, Sequence[Variant | Mutation]], ...] = (
        ("variants", VARIANTS),
        ("mutations", MUTATIONS),
    )
    for title, cases in tables:
        print(f"{title:66}{HEADER}")
        for case in cases:
            if parts and not any(part in case.name for part in parts):
                continue
            if isinstance(case, Variant) and case.full and "--full" not in arguments:
                continue
            outcome = Search(case.setting).run()
            failed |= not as_expected(case, outcome)
            print(row(case, outcome), flush=True)
            if verbose:
                print("".join(f"      {step}\n" for step in outcome.trace), end="")
        print()
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
