"""`make fuzz`: every target for a while, guided by coverage where Atheris is installed, by Hypothesis where it is not.

Exits with 1 when something was found. The input then lies below `.fuzz/`, with the command that tries it again.
"""

import argparse
import hashlib
import importlib.util
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.targets import CORPUS, NAMES, Target, load

FOUND: Final = Path(".fuzz")


@dataclass(frozen=True)
class Result:
    executions: int
    edges: int | None
    """Edges of the code covered; None where nobody counts."""
    findings: list[Path]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.replay is not None:
        (name,) = options.target or [options.replay.parent.name]
        load(name)(options.replay.read_bytes())
        print(f"{name}: {options.replay} keeps to the property")
        return 0
    guided = importlib.util.find_spec("atheris") is not None
    print("guided by coverage (Atheris)" if guided else "no Atheris for this Python: Hypothesis, unguided")
    print(f"{'target':14} {'seconds':>8} {'executions':>12} {'edges':>8} {'findings':>9}")
    failed = False
    for name in options.target or NAMES:
        started = time.monotonic()
        result = _guided(name, options.seconds) if guided else _unguided(name, options.seconds)
        seconds = time.monotonic() - started
        edges = "-" if result.edges is None else str(result.edges)
        print(
            f"{name:14} {seconds:8.0f} {result.executions:12,} {edges:>8} {len(result.findings):9}",
            flush=True,
        )
        for path in result.findings:
            failed = True
            print(f'  found: make fuzz ARGS="--target {name} --replay {path}"', flush=True)
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument(
        "--target", action="append", choices=NAMES, help="only this one; may be given several times"
    )
    parser.add_argument("--replay", type=Path, help="try one input and show what it does")
    return parser.parse_args(arguments)


def _guided(name: str, seconds: int) -> Result:
    found, grown = FOUND / name, FOUND / "grown" / name
    found.mkdir(parents=True, exist_ok=True)
    grown.mkdir(parents=True, exist_ok=True)
    known = set(found.iterdir())
    command = [sys.executable, "-m", "tests.fuzz.guided", name, f"-max_total_time={seconds}"]
    # One input that takes ten seconds is a finding too; memory, in MiB, is that of a function.
    command += ["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={found}/"]
    done = subprocess.run(
        [*command, str(grown), str(CORPUS / name)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    log = FOUND / f"{name}.log"
    log.write_text(done.stdout + done.stderr, encoding="utf-8", errors="replace")
    findings = sorted(set(found.iterdir()) - known)
    if done.returncode != 0 and not findings:
        raise SystemExit(f"{name} did not run; see {log}")
    executions = re.findall(r"number_of_executed_units: (\d+)", done.stderr) or re.findall(
        r"^#(\d+)", done.stderr, re.MULTILINE
    )
    edges = re.findall(r" cov: (\d+)", done.stderr)
    return Result(int(executions[-1]) if executions else 0, int(edges[-1]) if edges else None, findings)


def _unguided(name: str, seconds: int) -> Result:
    from hypothesis import HealthCheck, given, settings

    from tests.fuzz.inputs import inputs

    target, ends_at, tried = load(name), time.monotonic() + seconds, 0
    while time.monotonic() < ends_at:
        failing: list[bytes] = []

        @given(inputs(name))
        @settings(max_examples=2_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def attempt(data: bytes, failing: list[bytes] = failing) -> None:
            nonlocal tried
            tried += 1
            if time.monotonic() < ends_at:
                _try(target, data, failing)

        try:
            attempt()
        except BaseException:
            if not failing:
                raise
            traceback.print_exc()
            # The last one that failed is the smallest.
            return Result(tried, None, [_save(name, failing[-1])])
    return Result(tried, None, [])


def _try(target: Target, data: bytes, failing: list[bytes]) -> None:
    try:
        target(data)
    except BaseException:
        failing.append(data)
        raise


def _save(name: str, data: bytes) -> Path:
    path = FOUND / name / f"crash-{hashlib.sha256(data).hexdigest()[:16]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main())
