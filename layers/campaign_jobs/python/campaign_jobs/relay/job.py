"""The relay: a rule starts it each minute, and it keeps looking, so that publishing takes a second or two."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Final, Protocol

from campaign_jobs.catalog import MAX_VALUE_BYTES, RELAY
from campaign_jobs.database.batches import repeat_on_conflict
from campaign_jobs.database.connection import Database
from campaign_jobs.email.store import release_parked as release_parked_mails
from campaign_jobs.errors import PublishError
from campaign_jobs.fraud.cases import release_unheld
from campaign_jobs.observability import logger_of
from campaign_jobs.position.waiting import request_waiting
from campaign_jobs.relay.lease import Lease
from campaign_jobs.reward.settlement import fail_forgotten
from campaign_jobs.reward.settlement import release_parked as release_parked_webhooks
from campaign_jobs.worker.delivery import Deadline
from campaign_jobs.worker.isolation import forget_left_behind

LOOK_EVERY_SECONDS: Final = 1.0
POSITIONS_EVERY_SECONDS: Final = 60.0
FORGET_EVERY_SECONDS: Final = 600.0
WAITED_TOO_LONG: Final = timedelta(seconds=15)
"""A position request that is older has nobody running for it: its event was lost, or never was."""
PUBLISH_AT_ONCE: Final = 1_000
PUBLISH_BYTES_AT_ONCE: Final = 4 * 2**20
"""A portion ends with the event that reaches this, and the function's memory holds a few copies of it."""
UNTIL_DEADLINE_SECONDS: Final = 25.0
"""What is left when it stops looking, enough for a round that is under way, and for connecting to Kafka in it."""
ENDING_SECONDS: Final = 7.0
"""What publishing leaves of an invocation: for marking what was acknowledged, the lease, and what the handler does."""

# Row by row, so that what the portion leaves out is not read. As text, because services write these rows too: Python
# reads no number of thousands of digits, and it is for the event's owner to say so.
_UNPUBLISHED: Final = """
WITH RECURSIVE portion (number, bytes, id, partition_key, event) AS (
    VALUES (0, 0::bigint, 0::bigint, '', '')
    UNION ALL
    SELECT number + 1, bytes + octet_length(next.event), next.id, next.partition_key, next.event
    FROM portion CROSS JOIN LATERAL (
        SELECT id, partition_key, event::text AS event FROM campaign_jobs.outbox
        WHERE id > portion.id AND published_at IS NULL AND refused IS NULL ORDER BY id LIMIT 1
    ) AS next
    WHERE number < %(rows)s AND bytes < %(bytes)s
)
SELECT id, partition_key, event, number >= %(rows)s OR bytes >= %(bytes)s FROM portion WHERE number > 0 ORDER BY id
"""

_PUBLISHED: Final = """
UPDATE campaign_jobs.outbox SET published_at = clock_timestamp() WHERE id = ANY (%s)
"""

_REFUSED: Final = """
UPDATE campaign_jobs.outbox SET refused = %s WHERE id = ANY (%s)
"""


class Publisher(Protocol):
    """Writes to the topic."""

    def submit(self, messages: Sequence[tuple[str, bytes]], /) -> "Future[None]":
        """Begin to publish (key, value) pairs; this, or the future, raises PublishError.

        That names the positions of those not acknowledged.
        """
        ...


@dataclass(frozen=True)
class RelayReport:
    """What one run did, each a number of events but the last three."""

    published: int = 0
    refused: int = 0
    parked_mails_released: int = 0
    parked_webhooks_released: int = 0
    held_rewards_released: int = 0
    positions_requested: int = 0
    forgotten_rewards_failed: int = 0
    markers_forgotten: int = 0
    rounds: int = 0


class Relay:
    """Moves what waits in the database on to Kafka."""

    def __init__(self, database: Database, publisher: Publisher) -> None:
        self._database = database
        self._publisher = publisher
        self._positions_looked_at = float("-inf")
        self._forgot_at = float("-inf")

    def run(
        self,
        deadline: Deadline,
        *,
        before_round: Callable[[], None] = lambda: None,
        after_round: Callable[[], None] = lambda: None,
    ) -> RelayReport:
        """Look again and again until the deadline is near or the next tick's run waits for the lease.

        What is to be done around each round is done under the lease, and afterwards even where the round has failed.
        Raises PublishError when Kafka does not take everything: what it took is marked, the rest waits in the outbox.
        """
        with self._database.within(deadline):
            return self._run(deadline, before_round, after_round)

    def _run(
        self, deadline: Deadline, before_round: Callable[[], None], after_round: Callable[[], None]
    ) -> RelayReport:
        lease = Lease(self._database, "relay")
        while not lease.take():
            if deadline.remaining_seconds() < UNTIL_DEADLINE_SECONDS:
                return RelayReport()
            time.sleep(LOOK_EVERY_SECONDS / 2)
        report = RelayReport()

        def go_on() -> bool:
            return deadline.remaining_seconds() >= UNTIL_DEADLINE_SECONDS and lease.renew()

        try:
            while True:
                before_round()
                try:
                    report = self.round(report, go_on=go_on, deadline=deadline)
                finally:
                    after_round()
                if not go_on():
                    return report
                time.sleep(LOOK_EVERY_SECONDS)
        finally:
            lease.give_back()

    def round(
        self,
        report: RelayReport | None = None,
        *,
        go_on: Callable[[], bool] = lambda: True,
        deadline: Deadline | None = None,
    ) -> RelayReport:
        """Look once: bring back what may go on, then publish all that waits, as long as `go_on` says so."""
        report = report or RelayReport()
        started = time.monotonic()
        asks = started - self._positions_looked_at >= POSITIONS_EVERY_SECONDS
        forgets = started - self._forgot_at >= FORGET_EVERY_SECONDS
        try:
            # Services write these rows too.
            mails, webhooks, rewards, positions, failed, forgotten = repeat_on_conflict(
                self._database,
                lambda connection: (
                    release_parked_mails(connection, limit=PUBLISH_AT_ONCE),
                    release_parked_webhooks(connection),
                    release_unheld(connection),
                    request_waiting(connection, older_than=WAITED_TOO_LONG) if asks else 0,
                    fail_forgotten(connection) if forgets else 0,
                    forget_left_behind(connection) if forgets else 0,
                ),
            )
            # Only now that it is committed: what a conflict rolls back is done again.
            self._positions_looked_at = started if asks else self._positions_looked_at
            self._forgot_at = started if forgets else self._forgot_at
        finally:
            # What cannot be brought back does not keep the rest from going out.
            published, refused = self._publish_all(go_on, deadline)
        return replace(
            report,
            published=report.published + published,
            refused=report.refused + refused,
            parked_mails_released=report.parked_mails_released + mails,
            parked_webhooks_released=report.parked_webhooks_released + webhooks,
            held_rewards_released=report.held_rewards_released + rewards,
            positions_requested=report.positions_requested + positions,
            forgotten_rewards_failed=report.forgotten_rewards_failed + failed,
            markers_forgotten=report.markers_forgotten + forgotten,
            rounds=report.rounds + 1,
        )

    def _publish_all(self, go_on: Callable[[], bool], deadline: Deadline | None) -> tuple[int, int]:
        published = refused = 0
        limits = {"rows": PUBLISH_AT_ONCE, "bytes": PUBLISH_BYTES_AT_ONCE}
        while True:
            with self._database.transaction() as connection:
                rows = connection.execute(_UNPUBLISHED, limits).fetchall()
            if not rows:
                return published, refused
            messages = {id_: (key, _value(event)) for id_, key, event, _ in rows}
            too_large = [id_ for id_, (_, value) in messages.items() if len(value) > MAX_VALUE_BYTES]
            if too_large:
                # One such row would fail every run, and all others would wait for the next tick.
                self._refuse(too_large)
                refused += len(too_large)
                messages = {id_: message for id_, message in messages.items() if id_ not in too_large}
            failure: PublishError | None = None
            acknowledged = list(messages)
            try:
                self._publish(list(messages.values()), deadline)
            except PublishError as error:
                missing = set(error.unacknowledged) or set(range(len(messages)))
                acknowledged = [id_ for number, id_ in enumerate(messages) if number not in missing]
                failure = error
            with self._database.transaction() as connection:
                connection.execute(_PUBLISHED, [acknowledged])
            published += len(acknowledged)
            if failure is not None:
                raise failure
            # A long backlog must outlast neither the lease nor the invocation.
            is_full = rows[-1][-1]
            if not is_full or not go_on():
                return published, refused

    def _publish(self, messages: Sequence[tuple[str, bytes]], deadline: Deadline | None) -> None:
        acknowledged = self._publisher.submit(messages)
        seconds = None if deadline is None else deadline.earlier(ENDING_SECONDS).remaining_seconds()
        try:
            acknowledged.result(seconds)
        except TimeoutError:
            # What Kafka takes all the same goes out once more, under the same id.
            raise PublishError(f"{len(messages)} events were not acknowledged in time") from None

    def _refuse(self, ids: Sequence[int]) -> None:
        reason = f"the event is longer than the {MAX_VALUE_BYTES} bytes that a record's value may have"
        with self._database.transaction() as connection:
            connection.execute(_REFUSED, [reason, list(ids)])
        logger_of(RELAY.name).warning(
            "outbox rows refused", extra={"outbox_ids": list(ids), "reason": reason}
        )


def _value(event: str) -> bytes:
    value = event.encode()
    if len(value) > MAX_VALUE_BYTES:
        # jsonb writes spaces, and numbers such as 1e300 out: an event near the limit could never be published.
        try:
            value = json.dumps(
                json.loads(event, parse_int=_number),
                ensure_ascii=False,
                allow_nan=False,
                separators=(",", ":"),
            ).encode()
        except (ValueError, RecursionError):
            # One that Python cannot read is refused for its length.
            pass
    return value


def _number(digits: str) -> float:
    return int(digits) if len(digits) < 20 else float(digits)


def counts(report: RelayReport) -> dict[str, float]:
    """The report as metrics; `records` are the events published."""
    figures = {name: float(value) for name, value in asdict(report).items()}
    return {"records": figures.pop("published"), **figures}
