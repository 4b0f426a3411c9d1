"""The schema campaign_jobs as plain SQL files, applied in order by yoyo-migrations."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from typing import Any
from urllib.parse import urlencode


def apply(conninfo: str, **more: str) -> list[str]:
    """Bring the database up to date and return the names of the migrations applied now.

    `more` are further parameters of the connection. Concurrent callers wait for each other. Raises psycopg.Error when a
    migration fails; the failing one is rolled back, those before it stay.
    """
    # Imported here, because only those who migrate need them; the stack reads the names.
    from psycopg.conninfo import conninfo_to_dict
    from yoyo import get_backend, read_migrations
    from yoyo.migrations import MigrationList

    parameters = {**conninfo_to_dict(conninfo), **more}
    # "+psycopg" names psycopg 3 to yoyo, which takes the database's name only from the path.
    backend = get_backend(f"postgresql+psycopg:///{parameters.pop('dbname')}?{urlencode(parameters)}")
    try:
        with as_file(files(__name__)) as directory, _alone(backend):
            # It would take this file for a migration, too.
            ours = [migration for migration in read_migrations(str(directory)) if migration.id in names()]
            pending = backend.to_apply(MigrationList(ours))
            applied = [migration.id for migration in pending]
            backend.apply_migrations(pending)
    finally:
        backend.connection.close()
    return applied


@contextmanager
def _alone(backend: Any) -> Iterator[None]:
    """A lock that ends with the connection: the row of yoyo's own would outlive a process that is killed."""
    backend.execute("SELECT pg_advisory_lock(hashtextextended('campaign_jobs.migrations', 0))")
    yield


def names() -> list[str]:
    """All migrations that this version of the package has, the first one first."""
    return sorted(
        file.name.removesuffix(".sql") for file in files(__name__).iterdir() if file.name.endswith(".sql")
    )


def content_hash() -> str:
    """Changes with any migration."""
    content = hashlib.sha256()
    for name in names():
        content.update(name.encode() + b"\0" + files(__name__).joinpath(f"{name}.sql").read_bytes() + b"\0")
    return content.hexdigest()
