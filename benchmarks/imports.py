"""What each handler's cold start costs in imports, against the third-party modules that it loads, imported alone.

    python benchmarks/imports.py [--rounds 9]

Handlers are imported as Lambda does, with their settings in the environment and without touching the network. Prints
the medians in milliseconds, their ratio, and the memory afterwards; everything above 1 is our own code.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "layers" / "campaign_jobs" / "python"
sys.path[:0] = [str(PACKAGE), str(REPOSITORY)]

from campaign_jobs.settings import BY_FUNCTION

VALUES = {
    "DATABASE_URL": "postgresql://nobody@127.0.0.1/none",
    "KAFKA_BROKERS": "127.0.0.1:1",
    "DEFAULT_SENDER": "hello@example.com",
    "UNSUBSCRIBE_KEYS": "k" * 32,
}
# The resident memory that Linux tells, where there is Linux.
LOADED = """
import json, os, sys
before = set(sys.modules)
import handler
import site
roots = tuple(site.getsitepackages())
print(json.dumps({
    "modules": [
        name for name, module in list(sys.modules.items())
        if name not in before and str(getattr(module, "__file__", None) or "").startswith(roots)
    ],
    "memory_mb": (
        int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        if os.path.exists("/proc/self/statm") else float("nan")
    ),
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each, in turn (default: 9)")
    rounds = parser.parse_args().rounds
    print(f"{'handler':12} {'ours ms':>8} {'theirs ms':>10} {'ratio':>6} {'MiB':>5}   heavy modules loaded")
    for name in BY_FUNCTION:
        row = measure(name, rounds)
        ours, theirs = statistics.median(row["ours"]), statistics.median(row["theirs"])
        print(
            f"{name:12} {ours:8.0f} {theirs:10.0f} {ours / theirs:6.2f} {row['memory_mb']:5.0f}"
            f"   {', '.join(row['heavy'])}",
            flush=True,
        )


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of each round for one function's handler (`ours`) and for what it loads of others (`theirs`)."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{PACKAGE}:{REPOSITORY / 'functions' / name}",
        "POWERTOOLS_METRICS_NAMESPACE": "campaign-jobs",
        **{
            variable: VALUES.get(variable, "https://sqs.example.com/queue")
            for variable, required in BY_FUNCTION[name].environment_names().items()
            if required or variable in VALUES
        },
    }
    loaded = json.loads(run(LOADED, environment))
    # In the order of loading, so that each import finds what it needs as it did before.
    theirs_code = "\n".join(
        f"try:\n import {module}\nexcept Exception:\n pass" for module in loaded["modules"]
    )
    ours, theirs = [], []
    for _ in range(rounds + 1):
        ours.append(timed("import handler", environment))
        theirs.append(timed(theirs_code, environment))
    top_level = {module.partition(".")[0] for module in loaded["modules"]}
    heavy = sorted(
        top_level & {"boto3", "psycopg", "pydantic", "jinja2", "confluent_kafka", "aws_lambda_powertools"}
    )
    # The first of each warms the disk's cache.
    return {"ours": ours[1:], "theirs": theirs[1:], "memory_mb": loaded["memory_mb"], "heavy": heavy}


def run(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def timed(code: str, environment: dict[str, str]) -> float:
    """Milliseconds of a whole interpreter's life, the same start-up on both sides."""
    started = time.perf_counter()
    run(code, environment)
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main()
