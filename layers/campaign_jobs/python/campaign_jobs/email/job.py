"""The email job: load, decide, render, and send what may go."""

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from campaign_jobs.catalog import EMAIL, MAX_VALUE_BYTES
from campaign_jobs.database.batches import Refusal, in_batch, repeat_on_conflict
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email import store
from campaign_jobs.email.composing import CannotCompose, Templates, compose
from campaign_jobs.email.decisions import (
    HELD,
    TOO_OLD,
    Busy,
    Missing,
    Park,
    Send,
    Settled,
    Skip,
    TooOld,
    Wrong,
    decide,
    once_key,
)
from campaign_jobs.email.proof import accept_proven
from campaign_jobs.email.rate import SendRate
from campaign_jobs.email.sending import POOLFUL_SECONDS, Ready, Sending
from campaign_jobs.email.ses import EmailSender
from campaign_jobs.email.unsubscribing.links import UnsubscribeLinks
from campaign_jobs.errors import TemplateError
from campaign_jobs.events import EmailEvent, as_value
from campaign_jobs.observability import logger_of
from campaign_jobs.reward.settlement import EmailedReward, settle_emailed
from campaign_jobs.worker.delivery import Deadline, Delivery
from campaign_jobs.worker.outcomes import Done, Later, Outcome, Rejected, Retry, Skipped
from campaign_jobs.worker.patience import wait_for_missing


class EmailJob:
    """Sends the mails of a batch of events."""

    least_seconds: Final = POOLFUL_SECONDS

    def __init__(
        self,
        database: Database,
        sender: EmailSender,
        *,
        pool_size: int,
        default_sender: str,
        unsubscribe_links: UnsubscribeLinks,
        default_base_url: str | None = None,
        rate: SendRate | None = None,
        missing_row_patience: timedelta = timedelta(minutes=10),
    ) -> None:
        self._database = database
        self._rate = rate or SendRate(database, sender, share=1)
        self._sending = Sending(database, sender, self._rate, pool_size=pool_size)
        self._default_sender = default_sender
        self._unsubscribe_links = unsubscribe_links
        self._default_base_url = default_base_url
        self._missing_row_patience = missing_row_patience
        self._logger = logger_of(EMAIL.name)

    def process(self, deliveries: Sequence[Delivery[EmailEvent]], deadline: Deadline) -> Sequence[Outcome]:
        """Send what may be sent and write down what became of each event.

        Raises SendingStopped, KeysUnavailable or DatabaseUnavailable when nothing can go on, and RateExhausted when the
        send rate leaves no room for the rest; what has been sent by then is recorded, and every claim that was not used
        is released, by the next invocation of this process if the database is gone.
        """
        with self._database.within(deadline):
            return self._process(deliveries, deadline)

    def _process(self, deliveries: Sequence[Delivery[EmailEvent]], deadline: Deadline) -> Sequence[Outcome]:
        self._sending.record_left_behind()
        # Before anything is loaded, because SES may take its time, and what is loaded grows old.
        self._rate.look_up()
        loaded, templates = self._load([delivery.event for delivery in deliveries])
        outcomes: dict[str, Outcome] = {}
        ready: list[Ready] = []
        aside: list[store.SetAside] = []
        for delivery, item in zip(deliveries, loaded, strict=True):
            event = item.event
            match decide(event.data, item.state):
                case Send():
                    try:
                        mail = compose(
                            item,
                            templates,
                            default_sender=self._default_sender,
                            default_base_url=self._default_base_url,
                            unsubscribe_links=self._unsubscribe_links,
                        )
                        ready.append(Ready(item, mail))
                    except (TemplateError, CannotCompose) as error:
                        outcomes[event.id] = Rejected(str(error))
                case Skip(reason):
                    aside.append(store.SetAside(event, "skipped", reason))
                case Park(_) if len(as_value(event)) > MAX_VALUE_BYTES:
                    # What was left out has been filled in, and now relay could not publish it again.
                    outcomes[event.id] = Rejected("the event is too large to be parked")
                case Park(reason):
                    aside.append(store.SetAside(event, "parked", reason))
                case Settled("accepted"):
                    outcomes[event.id] = Done()
                case Settled(status):
                    outcomes[event.id] = Skipped(f"{status} before")
                case TooOld():
                    outcomes[event.id] = Skipped(TOO_OLD)
                case Busy(until):
                    outcomes[event.id] = Later("the mail is claimed by somebody else", until - item.state.now)
                case Missing(what):
                    outcomes[event.id] = wait_for_missing(delivery, what, self._missing_row_patience)
                case Wrong(reason):
                    outcomes[event.id] = Rejected(reason)
        outcomes |= self._set_aside(aside)
        outcomes |= self._sending.send(ready, deadline)
        return [outcomes[delivery.event.id] for delivery in deliveries]

    def give_up(
        self, given_up: Sequence[tuple[Delivery[EmailEvent], str]]
    ) -> Sequence[tuple[Delivery[EmailEvent], Refusal]]:
        """Mark the mails as failed, and the rewards that they would have delivered; returns what PostgreSQL refused.

        A mail that an event of SES proves to have been taken is accepted instead.
        """

        def work(connection: Connection, rows: Sequence[tuple[Delivery[EmailEvent], str]]) -> list[str]:
            aside = [store.SetAside(delivery.event, "failed", reason) for delivery, reason in rows]
            # A claim of ours that is left has no answer, and none will come.
            _write_aside(connection, aside, own_claim_token=self._sending.claim_token)
            # Only now that the rows are locked: an event that comes later waits, and accepts the failed mail by itself.
            return accept_proven(connection, [delivery.event.id for delivery, _ in rows])

        ordered = sorted(given_up, key=lambda item: item[0].event.id)
        accepted, refused = in_batch(self._database, ordered, work)
        self._log_proven([event_id for part in accepted for event_id in part])
        return [(delivery, refusal) for (delivery, _), refusal in refused]

    def _load(self, events: Sequence[EmailEvent]) -> tuple[list[store.Loaded], Templates]:
        def work(connection: Connection) -> tuple[list[str], list[store.Loaded], Templates]:
            # First, because an earlier try may have gone out without anybody recording it.
            accepted = accept_proven(
                connection,
                [event.id for event in events],
                once_keys=[key for event in events if (key := once_key(event.data)) is not None],
                position_user_ids=[
                    event.data.user_id for event in events if event.data.type == "position_update"
                ],
            )
            loaded = store.load(connection, events)
            return accepted, loaded, Templates(store.load_templates(connection, events))

        accepted, loaded, templates = repeat_on_conflict(self._database, work)
        self._log_proven(accepted)
        return loaded, templates

    def _log_proven(self, event_ids: Sequence[str]) -> None:
        for event_id in event_ids:
            self._logger.info("mail accepted by an event of SES", extra={"event_id": event_id})

    def _set_aside(self, items: Sequence[store.SetAside]) -> dict[str, Outcome]:
        _, refused = in_batch(self._database, sorted(items, key=lambda item: item.event.id), _write_aside)
        outcomes: dict[str, Outcome] = {
            item.event.id: Skipped(f"parked: {item.reason}" if item.status == "parked" else item.reason)
            for item in items
        }
        return outcomes | {item.event.id: Retry(refusal.reason) for item, refusal in refused}


def _write_aside(
    connection: Connection, items: Sequence[store.SetAside], *, own_claim_token: uuid.UUID | None = None
) -> None:
    """Write down the mails that do not go, and settle the rewards that they would have delivered."""
    written = store.set_aside(connection, items, own_claim_token=own_claim_token)
    settle_emailed(
        connection,
        [
            EmailedReward(
                item.event.data.user_reward_id, "held" if item.reason == HELD else "failed", item.reason
            )
            for item in items
            if item.event.data.type == "reward_earned"
            and item.event.data.user_reward_id is not None
            and item.status != "parked"
            and item.event.id in written
        ],
    )
