"""The jars of Apache Kafka: an exact list in the repository, downloaded once, verified, kept outside the checkout."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs
from jgo.maven import MavenContext

from campaign_jobs.errors import CampaignJobsError

LOCK_FILE: Final = Path(__file__).with_name("jars.lock")
_PARALLEL_DOWNLOADS: Final = 8
_TIMEOUT_SECONDS: Final = 30

Progress = Callable[[str, int, int], None]
"""Called with a message, the number of jars at hand and the number wanted."""


class JarError(CampaignJobsError):
    """A jar could not be had, or is not the one the lock file asks for; the message names it."""


@dataclass(frozen=True)
class Jar:
    """One line of the lock file."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def default_cache_directory() -> Path:
    return platformdirs.user_cache_path("campaign-jobs")


def read_lock(lock_file: Path = LOCK_FILE) -> list[Jar]:
    """Read the list. Raises JarError, naming the line, when one is not `group:artifact:version sha256:digest`."""
    jars = []
    for number, line in enumerate(lock_file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            coordinate, digest = line.split()
            group, artifact, version = coordinate.split(":")
            algorithm, sha256 = digest.split(":")
        except ValueError:
            algorithm = ""
        if algorithm != "sha256":
            raise JarError(
                f"{lock_file}, line {number}: {line!r} is not `group:artifact:version sha256:digest`"
            )
        jars.append(Jar(group, artifact, version, sha256))
    return jars


def ensure_jars(
    cache_directory: Path | None = None,
    *,
    progress: Progress | None = None,
    lock_file: Path = LOCK_FILE,
    repository: str | None = None,
) -> list[Path]:
    """Return the paths of all jars, downloading those that the cache lacks.

    Every jar is verified each time, whether it was downloaded now or before; several processes may do this at once.
    `repository` is the URL of a Maven repository to use in place of Maven Central. Raises JarError.
    """
    jars = read_lock(lock_file)
    directory = (cache_directory or default_cache_directory()) / "jars"
    directory.mkdir(parents=True, exist_ok=True)
    missing = [jar for jar in jars if not _is_the_right_one(directory / jar.file_name, jar)]
    if missing:
        report = progress or (lambda message, done, total: None)
        at_hand = len(jars) - len(missing)
        report("Downloading Apache Kafka", at_hand, len(jars))
        with _scratch_directory(directory) as scratch, ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
            maven = MavenContext(
                repo_cache=scratch,
                remote_repos={"mirror": repository} if repository else None,
                timeout=_TIMEOUT_SECONDS,
            )
            downloads = pool.map(lambda jar: _download(maven, jar, directory), missing)
            for done, jar in enumerate(downloads, start=at_hand + 1):
                report(f"Downloaded {jar.file_name}", done, len(jars))
    return [directory / jar.file_name for jar in jars]


def _download(maven: MavenContext, jar: Jar, directory: Path) -> Jar:
    # The exact coordinate and nothing it depends on: jgo's own resolution picks other versions than Maven does.
    artifact = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    try:
        downloaded = Path(artifact.resolve())
    except (RuntimeError, OSError) as error:  # The errors of requests are OSErrors.
        raise JarError(f"{jar.coordinate} cannot be downloaded: {error}") from error
    found = _sha256(downloaded)
    if found != jar.sha256:
        raise JarError(
            f"{jar.coordinate} is refused: its SHA-256 is {found}, but jars.lock asks for {jar.sha256}. "
            "Either the download was damaged or the repository serves something else."
        )
    # Only a complete and verified file ever gets its name in the cache, whoever else is doing the same.
    downloaded.replace(directory / jar.file_name)
    return jar


def _is_the_right_one(path: Path, jar: Jar) -> bool:
    return path.is_file() and _sha256(path) == jar.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _scratch_directory(beside: Path) -> Iterator[Path]:
    """A directory on the cache's file system, so that moving a file out of it is atomic."""
    scratch = Path(tempfile.mkdtemp(prefix="downloading-", dir=beside))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
