"""Runs pytest in a process of its own, forked from one that has imported what changes with no mutant.

That saves most of what a start costs. Each line of standard input is a JSON list of pytest's arguments and the file for
its output; each line of standard output is the exit code.
"""

import importlib
import json
import os
import sys
from pathlib import Path

OURS = {"campaign_jobs", "infra", "local", "tests"}
BROUGHT_BY = (
    "tests.conftest",
    "tests.integration.email_campaign",
    "hypothesis.strategies",
)


def main() -> None:
    # For the third-party code that they bring; our own, which is what mutates, is then forgotten.
    for name in BROUGHT_BY:
        importlib.import_module(name)
    for name in list(sys.modules):
        if name.partition(".")[0] in OURS:
            del sys.modules[name]
    for line in sys.stdin:
        arguments, output = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(arguments, Path(output))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _run(arguments: list[str], output: Path) -> None:
    import pytest

    code = 3
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = int(pytest.main(arguments))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
