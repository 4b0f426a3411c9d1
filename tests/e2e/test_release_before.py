"""While a release is deployed, the code before it works on the new schema: here it runs its own tests there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from local.postgres import PostgresServer

MIGRATIONS = Path("layers/campaign_jobs/python/campaign_jobs/database/migrations")
# What each function does with the database, as the code before says it, by the names of now and of then.
TESTS = (
    "tests/integration/email",
    "tests/integration/test_email_job.py",
    "tests/integration/test_feedback.py",
    "tests/integration/test_position_requests.py",
    "tests/integration/test_reward_deliveries.py",
    "tests/integration/test_analytics.py",
    "tests/integration/test_fraud_job.py",
    "tests/integration/test_relay.py",
)


def git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", repository, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def code_before(repository: Path) -> str:
    """The commit of the last release; where there is none yet, the one before the newest migration."""
    if release := git(repository, "describe", "--tags", "--abbrev=0", "--match=v*"):
        return release
    newest = git(repository, "log", "-1", "--format=%H", "--diff-filter=A", "--", str(MIGRATIONS / "*.sql"))
    return git(repository, "rev-parse", "--verify", "--quiet", f"{newest}^") if newest else ""


@pytest.mark.timeout(420)
def test_the_code_before_works_on_the_schema_of_now(
    repository: Path, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    before = code_before(repository)
    if not before:
        pytest.skip("no history in this copy of the repository")
    archive = tmp_path / "before.zip"
    assert (
        git(repository, "archive", "--format=zip", f"--output={archive}", before) == "" and archive.exists()
    )
    tree = tmp_path / "before"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tree)
    for old in (tree / MIGRATIONS).glob("*.sql"):
        old.unlink()
    for migration in (repository / MIGRATIONS).glob("*.sql"):
        shutil.copy(migration, tree / MIGRATIONS)

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *arguments, *(t for t in TESTS if (tree / t).exists())],
            cwd=tree,
            env={k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON"))}
            | {"CAMPAIGN_JOBS_TEST_POSTGRES_PORT": str(postgres_server.port)},
            capture_output=True,
            text=True,
            check=False,
        )

    done = run()
    if done.returncode == 1:
        # A test of then that fails by chance cannot be mended any more; one that the schema breaks fails each time.
        done = run("--last-failed")
    assert done.returncode == 0, f"{before} on the schema of now:\n{done.stdout[-8000:]}"
