"""The schema campaign_jobs as plain SQL files, applied in order by yoyo-migrations."""

from importlib.resources import as_file, files


def apply(database_url: str) -> list[str]:
    """Bring the database up to date and return the names of the migrations applied now.

    Concurrent callers wait for each other. Raises psycopg.Error when a migration fails; the failing one is rolled back.
    """
    # Imported here, because only those who migrate need it.
    from yoyo import get_backend, read_migrations

    # "+psycopg" names psycopg 3 to yoyo.
    backend = get_backend("postgresql+psycopg://" + database_url.partition("://")[2])
    try:
        with as_file(files(__name__)) as directory, backend.lock():
            pending = backend.to_apply(read_migrations(str(directory)))
            names = [migration.id for migration in pending]
            backend.apply_migrations(pending)
    finally:
        backend.connection.close()
    return names
