"""A virtual environment for each peer, and for the chart, made once from its pinned requirements."""

import hashlib
import subprocess
import sys
from pathlib import Path

from campaign_jobs.errors import CampaignJobsError

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".bench"


class BenchmarkError(CampaignJobsError):
    """A benchmark cannot run; the message says what it needs."""


def environment(name: str, requirements: Path) -> Path:
    """The environment's directory of programs. It is made anew when the requirements have changed.

    Raises BenchmarkError where pip does not install them.
    """
    directory = CACHE / name
    installed = directory / "installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    programs = directory / "bin"
    if installed.exists() and installed.read_text(encoding="ascii") == wanted:
        return programs
    print(f"Installing {name} (some seconds, once) ...", flush=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", directory],
        [programs / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", requirements],
    ):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchmarkError(f"{name} cannot be installed:\n{done.stdout}{done.stderr}")
    installed.write_text(wanted, encoding="ascii")
    return programs
