"""The reward job: delivers user rewards by their rewards' methods."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID, uuid4

from campaign_jobs.catalog import REWARD
from campaign_jobs.database.batches import Refusal, in_batch, repeat_on_conflict
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.errors import UnsafeTarget
from campaign_jobs.events import RewardEvent
from campaign_jobs.observability import logger_of
from campaign_jobs.reward import store
from campaign_jobs.reward.decisions import (
    CHANGED_MEANWHILE,
    GONE,
    DeliverByEmail,
    DeliverByWebhook,
    Endpoint,
    Hold,
    Park,
    Rest,
    UserReward,
    after_rest,
    decide,
    is_delivered,
    retry_delay,
)
from campaign_jobs.reward.endpoints import Attempt, Result
from campaign_jobs.reward.webhooks.client import WebhookClient
from campaign_jobs.reward.webhooks.message import body_of
from campaign_jobs.reward.webhooks.signing import signed_headers
from campaign_jobs.worker.delivery import Deadline, Delivery
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Rejected, Retry, Skipped
from campaign_jobs.worker.patience import wait_for_missing

RewardDelivery = Delivery[RewardEvent]
Row = TypeVar("Row")

# A claim outlives the invocation by this much, so that nobody takes over what is still being recorded.
CLAIM_MARGIN: Final = timedelta(seconds=10)
# What recording a pool-full and settling the batch may take after the last webhook.
RECORDING_SECONDS: Final = 5.0

NO_TIME_LEFT: Final = Later("no time was left in this invocation", timedelta(seconds=1))
SAME_USER_REWARD: Final = Later(
    "another event of the batch is about the same user reward", timedelta(seconds=5)
)


@dataclass(frozen=True)
class _Webhook:
    """One delivery to be posted."""

    delivery: RewardDelivery
    user_reward: UserReward
    endpoint: Endpoint


@dataclass(frozen=True)
class _Posted:
    """One that was posted, or refused before."""

    webhook: _Webhook
    attempt: Attempt


class RewardJob:
    """Delivers a batch of user rewards: one load, one statement for each kind of decision, webhooks side by side.

    At most `pool_size` webhooks are on the way or not yet recorded at any moment, which is how many a crash repeats; a
    repetition carries the same webhook-id.
    """

    def __init__(
        self,
        database: Database,
        client: WebhookClient,
        *,
        pool_size: int,
        missing_row_patience: timedelta = timedelta(minutes=10),
    ) -> None:
        self._database = database
        self._client = client
        self._pool_size = pool_size
        self._missing_row_patience = missing_row_patience
        # Starts its threads when the first webhooks go, and keeps them.
        self._pool = ThreadPoolExecutor(max_workers=pool_size, thread_name_prefix="webhook")
        self._logger = logger_of(REWARD.name)

    @property
    def least_seconds(self) -> float:
        return self._client.total_seconds + RECORDING_SECONDS

    def process(self, deliveries: Sequence[RewardDelivery], deadline: Deadline) -> Sequence[Outcome]:
        """Deliver what may be delivered. Raises DatabaseUnavailable."""
        with self._database.within(deadline):
            return self._process(deliveries, deadline)

    def _process(self, deliveries: Sequence[RewardDelivery], deadline: Deadline) -> Sequence[Outcome]:
        first: dict[UUID, RewardDelivery] = {}
        for delivery in deliveries:
            first.setdefault(_id(delivery), delivery)
        outcomes: dict[UUID, Outcome] = {}
        mails: list[RewardDelivery] = []
        holds: list[RewardDelivery] = []
        parkings: list[tuple[RewardDelivery, str]] = []
        webhooks: list[_Webhook] = []
        _, loaded = repeat_on_conflict(
            self._database, lambda connection: store.load(connection, sorted(first))
        )
        for id_, delivery in sorted(first.items()):
            user_reward = loaded.get(id_)
            if user_reward is None:
                outcomes[id_] = wait_for_missing(delivery, "user reward", self._missing_row_patience)
                continue
            match decide(user_reward):
                case DeliverByEmail():
                    mails.append(delivery)
                case DeliverByWebhook(endpoint):
                    webhooks.append(_Webhook(delivery, user_reward, endpoint))
                case Hold():
                    holds.append(delivery)
                case Park(reason):
                    parkings.append((delivery, reason))
                case Rest(left):
                    outcomes[id_] = _once_rested(left)
                case outcome:
                    outcomes[id_] = outcome
        outcomes |= self._hand_to_email(mails)
        outcomes |= self._hold(holds)
        outcomes |= self._park(parkings)
        outcomes |= self._deliver_webhooks(webhooks, deadline)
        return [
            outcomes[_id(delivery)] if first[_id(delivery)] is delivery else SAME_USER_REWARD
            for delivery in deliveries
        ]

    def give_up(
        self, given_up: Sequence[tuple[RewardDelivery, str]]
    ) -> Sequence[tuple[RewardDelivery, Refusal]]:
        """Mark the user rewards of dead letters as failed, each with the reason. Raises DatabaseUnavailable.

        Returns those that PostgreSQL refused.
        """
        _, refused = in_batch(
            self._database,
            sorted(given_up, key=lambda item: _id(item[0])),
            lambda connection, rows: store.give_up(connection, [(_id(row), reason) for row, reason in rows]),
        )
        return [(delivery, refusal) for (delivery, _), refusal in refused]

    def _hand_to_email(self, mails: Sequence[RewardDelivery]) -> dict[UUID, Outcome]:
        return self._in_batch(
            mails,
            lambda connection, rows: store.hand_to_email(
                connection, [(_id(row), row.event.id) for row in rows]
            ),
            key=_id,
            outcome=lambda row: Done(),
        )

    def _hold(self, holds: Sequence[RewardDelivery]) -> dict[UUID, Outcome]:
        return self._in_batch(
            holds,
            lambda connection, rows: store.hold(connection, [_id(row) for row in rows]),
            key=_id,
            outcome=lambda row: Skipped("held by a fraud case"),
        )

    def _park(self, parkings: Sequence[tuple[RewardDelivery, str]]) -> dict[UUID, Outcome]:
        return self._in_batch(
            parkings,
            lambda connection, rows: store.park(connection, [(_id(row), row.event.id) for row, _ in rows]),
            key=lambda row: _id(row[0]),
            outcome=lambda row: Skipped(f"parked: {row[1]}"),
        )

    def _in_batch(
        self,
        rows: Sequence[Row],
        work: Callable[[Connection, Sequence[Row]], set[UUID]],
        *,
        key: Callable[[Row], UUID],
        outcome: Callable[[Row], Outcome],
    ) -> dict[UUID, Outcome]:
        """Run one statement for all rows; those it leaves out changed since they were loaded, so they come again."""
        parts, refused = in_batch(self._database, rows, work)
        changed = set[UUID]().union(*parts)
        outcomes: dict[UUID, Outcome] = {
            key(row): outcome(row) if key(row) in changed else CHANGED_MEANWHILE for row in rows
        }
        return outcomes | {key(row): _refused("it", refusal) for row, refusal in refused}

    def _deliver_webhooks(self, webhooks: Sequence[_Webhook], deadline: Deadline) -> dict[UUID, Outcome]:
        if not webhooks:
            return {}
        if not self._has_time(deadline):
            return {webhook.user_reward.id: NO_TIME_LEFT for webhook in webhooks}
        claim = store.Claim(uuid4(), timedelta(seconds=deadline.remaining_seconds()) + CLAIM_MARGIN)
        outcomes = self._in_batch(
            webhooks,
            lambda connection, rows: store.claim(connection, [row.user_reward.id for row in rows], claim),
            key=lambda row: row.user_reward.id,
            outcome=lambda row: NO_TIME_LEFT,
        )
        claimed = [webhook for webhook in webhooks if outcomes[webhook.user_reward.id] is NO_TIME_LEFT]
        # Each pool-full waits for its slowest, so endpoints that fail come last and those of one endpoint together.
        claimed.sort(
            key=lambda item: (item.endpoint.consecutive_failures, item.endpoint.id, item.user_reward.id)
        )
        while claimed:
            if not self._has_time(deadline):
                self._release(claimed, claim)
                break
            poolful, claimed = claimed[: self._pool_size], claimed[self._pool_size :]
            recorded, resting = self._record(list(self._pool.map(self._post, poolful)), claim)
            outcomes |= recorded
            if spared := [webhook for webhook in claimed if webhook.endpoint.id in resting]:
                self._release(spared, claim)
                outcomes |= {item.user_reward.id: _once_rested(resting[item.endpoint.id]) for item in spared}
                claimed = [webhook for webhook in claimed if webhook.endpoint.id not in resting]
        return outcomes

    def _release(self, not_started: Sequence[_Webhook], claim: store.Claim) -> None:
        ids = sorted(webhook.user_reward.id for webhook in not_started)
        repeat_on_conflict(self._database, lambda connection: store.release(connection, ids, claim))

    def _has_time(self, deadline: Deadline) -> bool:
        return deadline.remaining_seconds() > self.least_seconds

    def _post(self, webhook: _Webhook) -> _Posted:
        attempted_at = datetime.now(UTC)
        body = body_of(webhook.user_reward)
        secrets = webhook.endpoint.secrets(attempted_at)
        headers = signed_headers(webhook.user_reward.id, body, secrets, attempted_at=attempted_at)

        def posted(
            result: Result,
            status: int | None,
            error: str | None,
            duration: timedelta = timedelta(),
            retry_after: timedelta | None = None,
        ) -> _Posted:
            return _Posted(
                webhook,
                Attempt(
                    user_reward_id=webhook.user_reward.id,
                    endpoint_id=webhook.endpoint.id,
                    event_id=webhook.delivery.event.id,
                    result=result,
                    status_code=status,
                    error=error,
                    attempted_at=attempted_at,
                    duration=duration,
                    retry_after=retry_after,
                ),
            )

        try:
            answer = self._client.post(webhook.endpoint.url, body, headers)
        except UnsafeTarget as error:
            return posted("refused", None, str(error))
        if is_delivered(answer.status):
            return posted("delivered", answer.status, None, answer.duration)
        return posted(
            "gone" if answer.status == GONE else "failed",
            answer.status,
            answer.error or f"the endpoint answered {answer.status}",
            answer.duration,
            answer.retry_after,
        )

    def _record(
        self, posted: Sequence[_Posted], claim: store.Claim
    ) -> tuple[dict[UUID, Outcome], dict[UUID, timedelta]]:
        """The outcomes, and the endpoints that rest from now on, each with how long."""
        rows = sorted(posted, key=lambda item: item.attempt.user_reward_id)
        parts, refused = in_batch(
            self._database,
            rows,
            lambda connection, part: store.record(connection, [item.attempt for item in part], claim),
        )
        settled = frozenset[UUID]().union(*(part.settled for part in parts))
        parked = frozenset[UUID]().union(*(part.parked for part in parts))
        resting = {id_: left for part in parts for id_, left in part.endpoints.resting.items()}
        for endpoint_id in sorted(frozenset[UUID]().union(*(part.endpoints.disabled for part in parts))):
            self._logger.warning("webhook endpoint disabled", extra={"endpoint_id": str(endpoint_id)})
        outcomes = {
            item.attempt.user_reward_id: _outcome(
                item, item.attempt.user_reward_id in settled, item.attempt.user_reward_id in parked
            )
            for item in rows
        }
        outcomes |= {
            item.attempt.user_reward_id: _refused("its result", refusal, claim.lasts)
            for item, refusal in refused
        }
        return outcomes, resting


def _refused(what: str, refusal: Refusal, after: timedelta | None = None) -> Outcome:
    reason = f"PostgreSQL refused {what}: {refusal}"
    return Retry(reason, after) if refusal.passing else Rejected(reason)


def _outcome(posted: _Posted, is_settled: bool, is_parked: bool) -> Outcome:
    attempt = posted.attempt
    reason = attempt.error or ""
    if not is_settled:
        # The claim ran out and somebody else took over; a second 2xx has the same webhook-id.
        return CHANGED_MEANWHILE
    if attempt.result == "delivered":
        return Done()
    if attempt.result == "refused":
        return Rejected(reason)
    if is_parked:
        return Skipped(f"parked: {reason}, and the endpoint is disabled")
    return Retry(
        reason, retry_delay(posted.webhook.delivery.attempts_spent, attempt.retry_after, random.random())
    )


def _once_rested(left: timedelta) -> Later:
    return Later("the endpoint rests after a failure", after_rest(left, random.random()))


def _id(delivery: RewardDelivery) -> UUID:
    return delivery.event.data.user_reward_id
