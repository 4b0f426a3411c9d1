"""Removes each guard in turn and proves that a test goes red: `make mutants`, or `python -m tests.mutants`.

Each mutant is one change of one file, in a copy of the tree. Its tests must pass without it (the control run) and fail
with it. A mutant is an error, not killed, where the text that it changes is not there exactly once (the code has moved
on), or where its tests fail because the change makes no sense rather than because of what it removes.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Literal

from local.postgres import PostgresServer
from tests.mutants.guards import Mutant, read_all

ROOT: Final = Path(__file__).resolve().parents[2]
COPIED: Final = (
    "layers",
    "cli",
    "functions",
    "infra",
    "local",
    "tests",
    "docs",
    "pyproject.toml",
    "app.py",
    "cdk.json",
)
LEFT_OUT: Final = shutil.ignore_patterns("__pycache__", ".*", "cdk.out", "node_modules")
PYTEST: Final = (
    *("-x", "-q", "--tb=short", "-rf", "--color=no"),
    *("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "tests.mutants.no_shrinking", "-o", "timeout=100"),
    # Hypothesis, which the nursery has imported.
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
# What a change says that breaks the code or the statement as such; a test that fails so proves nothing.
_NONSENSE: Final = re.compile(
    r"^E .*\b(SyntaxError|IndentationError|ImportError|ModuleNotFoundError|NameError|UndefinedColumn|UndefinedTable|"
    r"UndefinedFunction|AmbiguousColumn|IndeterminateDatatype)\b",
    re.MULTILINE,
)

Verdict = Literal["killed", "SURVIVED", "ERROR"]


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    verdict: Verdict
    what: str
    """The test that killed it, or what went wrong."""
    seconds: float
    output: str = ""


class Tree:
    """A copy of what the tests need."""

    def __init__(self, directory: Path, postgres_port: int) -> None:
        self.directory = directory
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, directory / name, ignore=LEFT_OUT)
            else:
                shutil.copy2(source, directory / name)

        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(("layers/campaign_jobs/python", "cli", ".")),
            "CAMPAIGN_JOBS_TEST_POSTGRES_PORT": str(postgres_port),
        }
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.nursery"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def pytest(self, tests: Sequence[str]) -> tuple[int, str]:
        """Run these tests in a process of their own; its exit code and output."""
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        output = self.directory / "output.txt"
        self._nursery.stdin.write(json.dumps([[*PYTEST, *tests], str(output)]) + "\n")
        self._nursery.stdin.flush()
        # pytest-timeout ends a test that hangs.
        code = int(self._nursery.stdout.readline())
        return code, output.read_text(errors="replace")

    def close(self) -> None:
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        self._nursery.stdin.close()
        self._nursery.wait()
        self._nursery.stdout.close()

    @contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """The tree with the mutant in it. Raises ValueError where its text is not there exactly once."""
        path = self.directory / mutant.path
        original = path.read_text()
        if (found := original.count(mutant.text)) != 1:
            raise ValueError(
                f"its text is there {found} times in {mutant.path}; change the mutant with the code"
            )
        self._write(path, original.replace(mutant.text, mutant.replacement))
        try:
            yield
        finally:
            self._write(path, original)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text)
        # Python tells a stale one by size and second, and a mutant may be neither longer nor later.
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()


def try_one(tree: Tree, mutant: Mutant) -> Result:
    started = time.monotonic()

    def result(verdict: Verdict, what: str, output: str = "") -> Result:
        return Result(mutant, verdict, what, time.monotonic() - started, output)

    try:
        with tree.mutated(mutant):
            code, output = tree.pytest(mutant.tests)
    except (OSError, ValueError) as error:
        return result("ERROR", str(error))
    if code == 0:
        return result("SURVIVED", "none of its tests failed: " + ", ".join(mutant.tests))
    failed = re.search(r"^FAILED (\S+)", output, re.MULTILINE)
    if code != 1 or failed is None:
        return result("ERROR", f"pytest ended with {code} and without a failed test", output)
    if nonsense := _NONSENSE.search(output):
        return result("ERROR", f"the change makes no sense: {nonsense[0]}", output)
    return result("killed", failed[1].partition("::")[2])


def control(trees: Sequence[Tree], mutants: Sequence[Mutant]) -> str | None:
    """Run all the named tests without any mutant, shared between the trees; the output where they do not pass."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    files = sorted({test.partition("::")[0] for test in tests})
    # By file, because the fixtures of one are shared.
    shares = [
        [test for test in tests if files.index(test.partition("::")[0]) % len(trees) == number]
        for number in range(len(trees))
    ]
    with ThreadPoolExecutor(len(trees)) as pool:
        runs = list(
            pool.map(
                lambda pair: pair[0].pytest(pair[1]) if pair[1] else (0, ""), zip(trees, shares, strict=True)
            )
        )
    return next((output for code, output in runs if code != 0), None)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make mutants", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only",
        metavar="TEXT",
        action="append",
        help="those whose name contains this, or that this file lists; repeatable",
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    parser.add_argument("--list", action="store_true", help="list them and end")
    parser.add_argument(
        "--no-control", action="store_true", help="trust that the tests pass without a mutant"
    )
    options = parser.parse_args(arguments)
    mutants = [
        m
        for m in read_all()
        if not options.only or any(text in m.name or text == m.listed_in for text in options.only)
    ]
    if not mutants:
        parser.error("no mutant has such a name; --list shows them")
    if options.list:
        for mutant in mutants:
            say(f"{mutant.name:<52} {mutant.guarantee}")
        return 0
    return run(mutants, jobs=min(options.jobs, len(mutants)), with_control=not options.no_control)


def run(mutants: Sequence[Mutant], *, jobs: int, with_control: bool) -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign-jobs-mutants-") as directory:
        # The server runs as another user where we are root.
        Path(directory).chmod(0o711)
        with PostgresServer(Path(directory) / "postgres", durable=False) as server:
            trees = [Tree(_made(Path(directory) / f"tree{number}"), server.port) for number in range(jobs)]
            try:
                if with_control:
                    say("Control run: the tests without a mutant ...")
                    failure = control(trees, mutants)
                    if failure is not None:
                        say(failure)
                        say("The tests must pass before a mutant can prove anything.")
                        return 1
                    say(f"  passed ({time.monotonic() - started:.0f} s)")
                results = _try_all(trees, mutants)
            finally:
                for tree in trees:
                    tree.close()
    return report(results, time.monotonic() - started)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _try_all(trees: Sequence[Tree], mutants: Sequence[Mutant]) -> list[Result]:
    free: SimpleQueue[Tree] = SimpleQueue()
    for tree in trees:
        free.put(tree)
    lock, done = threading.Lock(), 0

    def work(mutant: Mutant) -> Result:
        nonlocal done
        tree = free.get()
        try:
            result = try_one(tree, mutant)
        finally:
            free.put(tree)
        with lock:
            done += 1
            say(
                f"[{done:>3}/{len(mutants)}] {result.verdict:<8} {result.seconds:4.0f} s"
                f"  {mutant.name:<62} {result.what}"
            )
        return result

    with ThreadPoolExecutor(len(trees)) as pool:
        return list(pool.map(work, mutants))


def report(results: Sequence[Result], seconds: float) -> int:
    missed = [result for result in results if result.verdict != "killed"]
    for result in missed:
        mutant = result.mutant
        say(f"\n{result.verdict}: {mutant.name} ({mutant.guarantee})")
        say(f"  {result.what}")
        say(f"  {mutant.path}, described in tests/mutants/{mutant.listed_in}")
        if result.verdict == "SURVIVED":
            say("  Nothing notices that the guard is gone: write the test that does, and name it there.")
        if result.output:
            say("\n".join(f"    {line}" for line in result.output.splitlines()[-25:]))
    say(f"\n{len(results) - len(missed)}/{len(results)} killed in {seconds:.0f} s")
    return 1 if missed else 0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
