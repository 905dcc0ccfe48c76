"""A subject's process: ``python worker.py SUBJECT.py LOOP``. The standard library only.

Each line on standard input is a JSON object; ``do`` names the subject's method ``do_...``, the
rest are its arguments. The first is ``open``, with the settings. Each answer is one line.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import traceback
from pathlib import Path
from typing import Any


async def serve(path: Path) -> None:
    """Answer until standard input ends."""
    spec = importlib.util.spec_from_file_location("subject", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    subject: Any = None
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        question = json.loads(line)
        do = question.pop("do")
        try:
            if do == "open":
                sys.modules["subject"] = module
                spec.loader.exec_module(module)
                subject, found = await module.Subject.open(question["settings"]), None
            else:
                found = await getattr(subject, f"do_{do}")(**question)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        else:
            answer = {"is": found}
        print("answer " + json.dumps(answer), flush=True)
    if subject is not None:
        await subject.close()


def main() -> None:
    """Run on the loop that was asked for."""
    sys.path.insert(0, str(Path(__file__).parent))  # `work` is there
    factory = None
    if sys.argv[2] == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
