"""Fail when a test was skipped: every test runs, except those that need what is not installed.

Reads the JUnit report named on the command line; prints every skip with its reason.
"""

import shutil
import sys
import xml.etree.ElementTree as ElementTree

NEEDED = {"redis": "redis-server", "chromium": "chromium"}
"""What the reason of a skip names, and the program without which it is allowed."""


def main(report: str) -> int:
    """The number of skips that are not allowed, as the exit status (at most 1)."""
    absent = [word for word, program in NEEDED.items() if shutil.which(program) is None]
    refused = 0
    for case in ElementTree.parse(report).iter("testcase"):
        for skip in case.iter("skipped"):
            if skip.get("type") == "pytest.xfail":
                continue
            reason = skip.get("message", "")
            allowed = any(word in reason.lower() for word in absent)
            refused += not allowed
            verdict = "skipped" if allowed else "skipped, which is not allowed"
            print(f"{verdict}: {case.get('classname')}::{case.get('name')}: {reason}")
    return min(refused, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
