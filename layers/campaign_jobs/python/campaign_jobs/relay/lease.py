"""A lease row: one process at a time does something, and no transaction stays open meanwhile."""

import uuid
from datetime import timedelta
from typing import Final

from campaign_jobs.database.connection import Database

DURATION: Final = timedelta(seconds=5)
"""How far ahead the owner holds it; after a crash the next one waits at most this long."""

_TAKE: Final = """
INSERT INTO campaign_jobs.leases AS lease (name, owner, expires_at)
VALUES (%(name)s, %(owner)s, clock_timestamp() + %(duration)s)
ON CONFLICT (name) DO UPDATE
SET owner = EXCLUDED.owner, expires_at = EXCLUDED.expires_at, waiting = NULL, waiting_until = NULL
WHERE lease.expires_at < clock_timestamp()
"""

_WAIT: Final = """
UPDATE campaign_jobs.leases SET waiting = %(owner)s, waiting_until = clock_timestamp() + %(duration)s
WHERE name = %(name)s
"""

_RENEW: Final = """
UPDATE campaign_jobs.leases SET expires_at = clock_timestamp() + %(duration)s
WHERE name = %(name)s AND owner = %(owner)s AND expires_at >= clock_timestamp()
  AND (waiting IS NULL OR waiting_until < clock_timestamp())
"""

_GIVE_BACK: Final = """
UPDATE campaign_jobs.leases SET expires_at = '-infinity' WHERE name = %(name)s AND owner = %(owner)s
"""


class Lease:
    """One process's side of the lease `name`."""

    def __init__(self, database: Database, name: str, duration: timedelta | None = None) -> None:
        self._database = database
        self._parameters = {"name": name, "owner": uuid.uuid4(), "duration": duration or DURATION}

    def take(self) -> bool:
        """Try to become the owner; where somebody else is, ask that one to yield."""
        with self._database.transaction() as connection:
            if connection.execute(_TAKE, self._parameters).rowcount == 1:
                return True
            connection.execute(_WAIT, self._parameters)
        return False

    def renew(self) -> bool:
        """Stay the owner for a while longer; False when the lease was lost or somebody waits for it."""
        with self._database.transaction() as connection:
            return connection.execute(_RENEW, self._parameters).rowcount == 1

    def give_back(self) -> None:
        """Let the next one have it at once."""
        with self._database.transaction() as connection:
            connection.execute(_GIVE_BACK, self._parameters)
