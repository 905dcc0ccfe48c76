"""Prints what the model checker finds.

``python -m tests.model.checker [-v] [--full] [name part ...]``

The first table has the protocol as shipped under every variant, the second the mutations.
Columns: states explored, seconds, states with a leftover that the documentation admits, and
the result; for a violation the length of the shortest way to it. ``-v`` tells that way,
``--full`` adds the variants that take minutes.
The exit status is 1 if any row is not as expected; a state cap that is reached never is.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.model.mutations import MUTATIONS, Mutation
from tests.model.search import Outcome, Search
from tests.model.variants import VARIANTS, Variant

TABLES: dict[str, Sequence[Variant | Mutation]] = {"variants": VARIANTS, "mutations": MUTATIONS}
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
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        for title, cases in TABLES.items():
            print(f"{title:66}{HEADER}")
            chosen = [
                place
                for place, case in enumerate(cases)
                if (not parts or any(part in case.name for part in parts))
                and not (isinstance(case, Variant) and case.full and "--full" not in arguments)
            ]
            outcomes = pool.map(explored, [title] * len(chosen), chosen)
            for place, outcome in zip(chosen, outcomes, strict=True):
                failed |= not as_expected(cases[place], outcome)
                print(row(cases[place], outcome), flush=True)
                if verbose:
                    print("".join(f"      {step}\n" for step in outcome.trace), end="")
            print()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"peak memory of a process {peak} MB")
    return int(failed)


def explored(title: str, place: int) -> Outcome:
    """What a search of one case finds, in a process of the pool."""
    return Search(TABLES[title][place].setting).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
