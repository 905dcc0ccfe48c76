"""Fail when a test was skipped: every test runs, except those that need a Redis not installed.

Reads the JUnit report named on the command line; prints every skip with its reason.
"""

import shutil
import sys
import xml.etree.ElementTree as ElementTree


def main(report: str) -> int:
    """The number of skips that are not allowed, as the exit status (at most 1)."""
    redis_is_absent = shutil.which("redis-server") is None
    refused = 0
    for case in ElementTree.parse(report).iter("testcase"):
        for skip in case.iter("skipped"):
            if skip.get("type") == "pytest.xfail":
                continue
            reason = skip.get("message", "")
            allowed = redis_is_absent and "redis" in reason.lower()
            refused += not allowed
            verdict = "skipped" if allowed else "skipped, which is not allowed"
            print(f"{verdict}: {case.get('classname')}::{case.get('name')}: {reason}")
    return min(refused, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
