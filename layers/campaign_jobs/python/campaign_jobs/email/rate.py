"""The account's SES rate, shared by all functions that run at the same time: a token bucket in PostgreSQL."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psycopg

from campaign_jobs.catalog import EMAIL
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email.ses import EmailSender
from campaign_jobs.errors import RateUnknown, SendingStopped
from campaign_jobs.observability import logger_of

SES: Final = "ses"
"""The bucket's name."""

# Whoever gets a row has to look the rate up: nobody has for five minutes, or nobody ever did.
_LOOK_UP: Final = """
INSERT INTO campaign_jobs.send_tokens AS bucket (name, looked_up_at) VALUES (%(name)s, clock_timestamp())
ON CONFLICT (name) DO UPDATE SET looked_up_at = clock_timestamp()
WHERE bucket.rate IS NULL OR bucket.looked_up_at < clock_timestamp() - interval '5 minutes'
RETURNING name
"""

_STORE: Final = """
UPDATE campaign_jobs.send_tokens SET rate = %(rate)s, looked_up_at = clock_timestamp() WHERE name = %(name)s
"""

_STORED: Final = "SELECT rate FROM campaign_jobs.send_tokens WHERE name = %(name)s"

_LOOK_UP_AGAIN: Final = """
UPDATE campaign_jobs.send_tokens SET looked_up_at = '-infinity' WHERE name = %(name)s
"""

# The bucket holds a second's rate, of which the bulk lane leaves a fifth alone; at small rates it leaves one token, and
# there is always room for another. A large rate is given in portions of at least a tenth of a second, so that of many
# functions that wait, each does not ask for every single token.
_TAKE: Final = """
WITH locked AS MATERIALIZED (
    SELECT rate, tokens, greatest(refilled_at, paused_until) AS refills_from, paused_until,
           greatest(1, rate * 0.2) AS reserve
    FROM campaign_jobs.send_tokens
    WHERE name = %(name)s AND rate IS NOT NULL
    FOR UPDATE
), timed AS MATERIALIZED (
    -- Only now that the row is ours: an earlier moment would count again what the one before us has been given.
    SELECT *, clock_timestamp() AS now FROM locked
), refilled AS (
    SELECT now, rate, paused_until,
           least(greatest(rate, reserve + 1),
                 tokens + rate * extract(epoch FROM greatest(now - refills_from, '0'))) AS tokens,
           CASE WHEN %(bulk)s THEN reserve ELSE 0 END AS untouched,
           least(%(wanted)s, greatest(1, floor(rate / 10))) AS fewest,
           least(%(wanted)s, greatest(1, floor(rate))) AS most
    FROM timed
), granted AS MATERIALIZED (
    SELECT *, CASE WHEN tokens - untouched >= fewest THEN least(most, floor(tokens - untouched)) ELSE 0 END AS granted
    FROM refilled
)
UPDATE campaign_jobs.send_tokens AS bucket
SET tokens = granted.tokens - granted.granted, refilled_at = granted.now
FROM granted
WHERE bucket.name = %(name)s
RETURNING granted.granted::integer,
          (greatest(0, untouched + fewest - granted.tokens) / granted.rate
           + extract(epoch FROM greatest(granted.paused_until, now) - now))::double precision
"""

_PAUSE: Final = """
UPDATE campaign_jobs.send_tokens
SET tokens = 0, paused_until = greatest(paused_until, clock_timestamp() + make_interval(secs => %(seconds)s))
WHERE name = %(name)s
"""


@dataclass(frozen=True)
class Grant:
    tokens: int
    """How many mails may be sent now."""
    wait_seconds: float
    """Where there were none, when it is worth asking again."""


class SendRate:
    """One function's access to the bucket.

    All functions together send at most the account's rate times `share`, and after a pause of a second or more at once
    what has gathered: at most a second's rate, or two mails where that is less. Each method raises SendingStopped where
    somebody keeps the bucket locked.
    """

    def __init__(self, database: Database, sender: EmailSender, *, share: float) -> None:
        self._database = database
        self._sender = sender
        self._share = share
        self._logger = logger_of(EMAIL.name)

    def look_up(self) -> None:
        """Ask SES for the account's rate where nobody has for a while.

        Raises SendingStopped when the account may not send, or when its rate has never been learned.
        """
        with self._bucket() as connection:
            if connection.execute(_LOOK_UP, {"name": SES}).fetchone() is None:
                return
        try:
            rate = self._sender.max_send_rate() * self._share
        except SendingStopped:
            # The next one asks again, so that mail goes as soon as it may.
            self._execute(_LOOK_UP_AGAIN)
            raise
        except RateUnknown as error:
            if not self._is_known():
                raise SendingStopped(f"the account's send rate was never learned: {error}") from error
            self._logger.warning(
                "the send rate was not told, the last one holds", extra={"reason": str(error)}
            )
            return
        self._execute(_STORE, rate=rate)

    def take(self, wanted: int, *, bulk: bool) -> Grant:
        """Ask for up to `wanted` mails; the bulk lane leaves a reserve to the other one."""
        with self._bucket() as connection:
            return take(connection, wanted, bulk=bulk)

    def pause(self, seconds: float) -> None:
        """Nobody gets anything for so long: SES has said that it was too much."""
        self._execute(_PAUSE, seconds=seconds)

    def _is_known(self) -> bool:
        with self._bucket() as connection:
            row = connection.execute(_STORED, {"name": SES}).fetchone()
        return row is not None and row[0] is not None

    def _execute(self, statement: str, **parameters: float) -> None:
        with self._bucket() as connection:
            connection.execute(statement, {"name": SES, **parameters})

    @contextmanager
    def _bucket(self) -> Iterator[Connection]:
        try:
            with self._database.transaction() as connection:
                yield connection
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
            raise SendingStopped("the account's send rate cannot be asked for: its row is locked") from error


def take(connection: Connection, wanted: int, *, bulk: bool) -> Grant:
    """The grant's one statement. Raises SendingStopped where no rate is stored."""
    row = connection.execute(_TAKE, {"name": SES, "wanted": wanted, "bulk": bulk}).fetchone()
    if row is None:
        raise SendingStopped("the account's send rate is not known")
    return Grant(*row)
