"""Sending mails that are ready: claimed, side by side, at the account's rate, recorded a pool-full at a time."""

import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from itertools import takewhile
from typing import Final

from campaign_jobs.catalog import EMAIL, LANE_BY_EVENT_TYPE
from campaign_jobs.database.batches import Refusal, in_batch
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email import store
from campaign_jobs.email.decisions import SEND, decide, exclusive_key
from campaign_jobs.email.rate import SendRate
from campaign_jobs.email.ses import (
    CONNECT_SECONDS,
    READ_SECONDS,
    Accepted,
    EmailSender,
    Failed,
    Mail,
    Refused,
    SendResult,
    Throttled,
    Unknown,
    Unreached,
)
from campaign_jobs.errors import BatchStopped, DatabaseUnavailable, RateExhausted, SendingStopped
from campaign_jobs.observability import log_unexpected, logger_of
from campaign_jobs.reward.settlement import EmailedReward, settle_emailed
from campaign_jobs.worker.delivery import Deadline
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Rejected, Retry

CLAIM_MARGIN: Final = timedelta(seconds=30)
"""A claim outlives its invocation by this much, for the time that ending it may take."""
LONGEST_CLAIM: Final = timedelta(seconds=EMAIL.timeout_seconds) + CLAIM_MARGIN
POOLFUL_SECONDS: Final = CONNECT_SECONDS + READ_SECONDS + 5
"""The longest that sending and recording one pool-full may take; with less left, nothing more is started."""
_CLAIMED_ELSEWHERE: Final = Later("the mail is claimed by somebody else", timedelta(seconds=5))
_CHANGED: Final = Later("what the mail was decided by changed meanwhile", timedelta(seconds=5))
FIRST_PAUSE_SECONDS: Final = 1.0
LAST_PAUSE_SECONDS: Final = 16.0
"""How long nobody sends after a throttle; twice as long each time that throttles go on."""


@dataclass(frozen=True)
class Ready:
    """A mail that is rendered and may go."""

    loaded: store.Loaded
    mail: Mail

    @property
    def event_id(self) -> str:
        return self.loaded.event.id

    @property
    def bulk(self) -> bool:
        return LANE_BY_EVENT_TYPE[self.loaded.event.type].bulk

    @property
    def was_tried(self) -> bool:
        """An earlier try failed, or ended without anybody knowing how."""
        return self.loaded.state.message_status in ("failed", "claimed")


@dataclass(frozen=True)
class _Broke:
    """The sender failed in a way that nobody foresaw: the mail may have been sent or not."""

    reason: str


_Answer = SendResult | BatchStopped | _Broke


class Sending:
    """Sends mails that are ready, and records what SES says of each."""

    def __init__(self, database: Database, sender: EmailSender, rate: SendRate, *, pool_size: int) -> None:
        self._database = database
        self._sender = sender
        self._rate = rate
        self._pool_size = pool_size
        self._logger = logger_of(EMAIL.name)
        # How claims ended that could not be recorded: the database was gone, or somebody kept the rows locked.
        self._left_behind: list[store.Result] = []

    @cached_property
    def claim_token(self) -> uuid.UUID:
        """One for all claims of this process, which works on one invocation at a time.

        Not before its first invocation, because a snapshot of a process may be started many times.
        """
        return uuid.uuid4()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._pool_size, thread_name_prefix="send")

    def send(self, ready: Sequence[Ready], deadline: Deadline) -> dict[str, Outcome]:
        """Claim the mails, send them, and return the outcomes by event id.

        Raises SendingStopped or DatabaseUnavailable when nothing can go on, and RateExhausted when the send rate leaves
        no room for the rest; what has been sent by then is recorded and every claim that was not used is released, or
        that is left for `record_left_behind`.
        """
        if not ready:
            return {}
        claim_for = timedelta(seconds=deadline.remaining_seconds()) + CLAIM_MARGIN
        pause = FIRST_PAUSE_SECONDS
        rate_is_short = False
        # What has been sent and cannot be recorded counts as on its way: a crash may repeat it as well.
        unrecorded: dict[str, Outcome] = {}
        waiting = list(ready)
        try:
            claimed_ids, outcomes = self._claim(ready, claim_for)
            # What failed before goes last, so that a short rate is not used up by the same mails again and again.
            waiting = sorted(
                (item for item in ready if item.event_id in claimed_ids),
                key=lambda item: (item.was_tried, item.bulk),
            )
            while (
                waiting
                and (room := self._pool_size - len(unrecorded))
                and deadline.remaining_seconds() > POOLFUL_SECONDS
            ):
                granted, rate_is_short = self._ask_for_tokens(waiting[:room], deadline)
                if not granted:
                    break
                poolful, waiting = waiting[:granted], waiting[granted:]
                answers = self._send_side_by_side(poolful)
                if all(isinstance(answer, Unreached) for answer in answers):
                    answers = [SendingStopped("SES is not reached")] * len(answers)
                stopped = next((answer for answer in answers if isinstance(answer, BatchStopped)), None)
                answered = list(zip(poolful, answers, strict=True))
                throttled = [item for item, answer in answered if isinstance(answer, Throttled)]
                waiting = throttled + waiting
                unrecorded |= self._record(
                    [
                        result
                        for item, answer in answered
                        if (result := _result(item.event_id, answer)) is not None
                    ]
                )
                if stopped is not None:
                    raise stopped
                outcomes |= {
                    item.event_id: _outcome(answer, claim_for)
                    for item, answer in answered
                    if not isinstance(answer, Throttled)
                }
                if throttled:
                    rate_is_short = True
                    self._rate.pause(pause)
                    pause = min(pause * 2, LAST_PAUSE_SECONDS)
                else:
                    pause = FIRST_PAUSE_SECONDS
            if waiting and rate_is_short and not unrecorded and not _comes_to_nothing_new(waiting, outcomes):
                raise RateExhausted("the send rate leaves no room for the rest before the deadline")
        except SendingStopped:
            self._record(_released(waiting, "the batch was stopped"))
            raise
        except DatabaseUnavailable:
            self._leave_behind(_released(waiting, "the database was gone"))
            raise
        if waiting:
            reason = "no time was left in this invocation" if room else "others could not be recorded first"
            self._record(_released(waiting, reason))
            outcomes |= {item.event_id: Later(reason, timedelta()) for item in waiting}
        return outcomes | unrecorded

    def record_left_behind(self) -> None:
        """Record how claims of this process ended in earlier invocations that could not record it.

        Without it, what SES has taken might go again once its claim has run out, and the rest would wait for as long. A
        claim that somebody else has taken over by now is left alone. Raises DatabaseUnavailable.
        """
        left_behind, self._left_behind = self._left_behind, []
        if not left_behind:
            return
        # Nobody waits long for a row that is still locked; it stays left behind.
        refused = self._record(left_behind, patiently=False)
        self._logger.info("claims ended later", extra={"claims": len(left_behind) - len(refused)})

    def _leave_behind(self, results: Sequence[store.Result]) -> None:
        if results:
            self._logger.warning("claims left behind", extra={"claims": len(results)})
            self._left_behind += results

    def _ask_for_tokens(self, poolful: Sequence[Ready], deadline: Deadline) -> tuple[int, bool]:
        """How many of the first mails may go now, all of one kind of lane, and whether the rate is what limits them.

        Where there are no tokens, it waits for the first; none at all means that the deadline is too near for that.
        """
        bulk = poolful[0].bulk
        wanted = len(list(takewhile(lambda item: item.bulk == bulk, poolful)))
        waited = False
        while (grant := self._rate.take(wanted, bulk=bulk)).tokens == 0:
            if deadline.remaining_seconds() - grant.wait_seconds <= POOLFUL_SECONDS:
                return 0, True
            time.sleep(grant.wait_seconds)
            waited = True
        return grant.tokens, waited or grant.tokens < wanted

    def _claim(self, ready: Sequence[Ready], claim_for: timedelta) -> tuple[set[str], dict[str, Outcome]]:
        # The database decides between batches; inside one, the first of those that exclude each other is tried.
        first = {
            exclusive_key(item.loaded.event.data) or item.event_id: item.loaded for item in reversed(ready)
        }
        ordered = [item for _, item in sorted(first.items(), key=lambda entry: entry[0])]

        def work(connection: Connection, rows: Sequence[store.Loaded]) -> dict[str, Outcome | None]:
            claimed = store.claim(connection, rows, claim_token=self.claim_token, claim_for=claim_for)
            mine = [item for item in rows if item.event.id in claimed]
            by_now = store.load(connection, [item.event for item in mine])
            changed = [
                store.Result(item.event.id, "released", _CHANGED.reason)
                for item, now in zip(mine, by_now, strict=True)
                if not _still_goes(item, now)
            ]
            if changed:
                store.record(connection, changed, claim_token=self.claim_token)
            return dict.fromkeys(claimed) | {result.event_id: _CHANGED for result in changed}

        parts, refused = in_batch(self._database, ordered, work)
        claimed = {event_id: outcome for part in parts for event_id, outcome in part.items()}
        # A claim that was made again ends anew.
        self._left_behind = [result for result in self._left_behind if result.event_id not in claimed]
        outcomes = {
            item.event_id: outcome
            for item in ready
            if (outcome := claimed.get(item.event_id, _CLAIMED_ELSEWHERE)) is not None
        }
        outcomes |= {item.event.id: Retry(refusal.reason) for item, refusal in refused}
        return {item.event_id for item in ready} - outcomes.keys(), outcomes

    def _send_side_by_side(self, poolful: Sequence[Ready]) -> list[_Answer]:
        def send(item: Ready) -> _Answer:
            # Whatever happens is kept until its neighbors are recorded.
            try:
                return self._sender.send(item.mail)
            except BatchStopped as error:
                return error
            except Exception as error:  # noqa: BLE001  It is logged.
                log_unexpected(self._logger, "unexpected error in sending", error, event_id=item.event_id)
                return _Broke(f"unexpected {type(error).__name__}")

        return list(self._pool.map(send, poolful))

    def _record(
        self, results: Sequence[store.Result], *, patiently: bool = True
    ) -> dict[str, Retry | Rejected]:
        """Write down how claims ended, and return the outcomes of what PostgreSQL refused.

        A mail without an answer keeps its claim, and may be sent again after it; a throttled one waits under its claim.
        """

        def work(connection: Connection, rows: Sequence[store.Result]) -> None:
            accepted = {result.event_id for result in rows if result.status == "accepted"}
            recorded = store.record(connection, rows, claim_token=self.claim_token)
            settle_emailed(
                connection,
                [
                    EmailedReward(user_reward_id, "accepted", None)
                    for event_id, user_reward_id in recorded
                    if event_id in accepted and user_reward_id is not None
                ],
            )

        ordered = sorted(results, key=lambda result: result.event_id)
        try:
            _, refused = in_batch(self._database, ordered, work, patiently=patiently)
        except DatabaseUnavailable:
            # What was committed all the same is under our claim no more.
            self._leave_behind(results)
            raise
        self._leave_behind([result for result, refusal in refused if refusal.passing])
        return {result.event_id: _unrecorded(result, refusal) for result, refusal in refused}


def _released(items: Sequence[Ready], reason: str) -> list[store.Result]:
    """The claims of what was not sent, given back; what was tried before stays known as that."""
    return [store.Result(item.event_id, "failed" if item.was_tried else "released", reason) for item in items]


def _comes_to_nothing_new(waiting: Sequence[Ready], outcomes: Mapping[str, Outcome]) -> bool:
    """Whether a redelivery of the batch would only try again what has failed, and lose the outcomes that say so."""
    return all(item.was_tried for item in waiting) and any(
        isinstance(outcome, (Retry, Rejected)) for outcome in outcomes.values()
    )


def _still_goes(before: store.Loaded, now: store.Loaded) -> bool:
    """Whether a mail that has just been claimed may go by what is there now.

    From the claim on nobody else tells the user a position.
    """
    unclaimed = replace(now.state, message_status=None, claimed_until=None)
    return (
        decide(now.event.data, unclaimed) == SEND
        and now.state.last_notified_at == before.state.last_notified_at
    )


def _unrecorded(result: store.Result, refusal: Refusal) -> Retry | Rejected:
    reason = f"{result.status}, but that could not be recorded: {refusal}"
    # The claim stands. A retry sends an accepted mail again once it has expired, so that is only for what passes.
    return Retry(reason, LONGEST_CLAIM) if refusal.passing else Rejected(reason)


def _result(event_id: str, answer: _Answer) -> store.Result | None:
    match answer:
        case Accepted(message_id):
            return store.Result(event_id, "accepted", ses_message_id=message_id)
        case Unknown() | _Broke() | Throttled():
            return None
        case Failed(reason) | Refused(reason):
            return store.Result(event_id, "failed", reason)
        case BatchStopped():
            return store.Result(event_id, "released", "the batch was stopped")


def _outcome(answer: _Answer, claim_for: timedelta) -> Outcome:
    match answer:
        case Accepted():
            return Done()
        case Refused(reason):
            return Rejected(reason)
        case Failed(reason):
            return Retry(reason)
        case Unknown(reason) | _Broke(reason):
            # Sent again once the claim has expired, and not for ever: each time may be a mail too many.
            return Retry(reason, claim_for)
        case BatchStopped() | Throttled():
            raise AssertionError("a stop ends the batch, and a throttled mail still waits")
