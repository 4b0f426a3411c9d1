"""Races of two relays, and of a relay with those who write to the outbox."""

import json
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta

import pytest

from campaign_jobs import outbox
from campaign_jobs.database.connection import Connection
from campaign_jobs.events import EmailJobPayload, new_event
from campaign_jobs.relay import lease
from campaign_jobs.relay.job import Relay, RelayReport
from tests.integration.email_campaign import MailCampaign
from tests.integration.reward_campaign import deadline
from tests.interleavings.mailing import email_job
from tests.interleavings.services import in_transaction, writes
from tests.interleavings.stepping import Race, Side

# Less than a relay needs to look again, so that a run is one round.
ONE_ROUND_SECONDS = 5


@dataclass
class SteppedPublisher:
    """Takes all that it is given; the request and the acknowledgement are boundaries of the side that publishes."""

    side: Side
    published: list[str]

    def submit(self, messages: Sequence[tuple[str, bytes]]) -> "Future[None]":
        self.side.reaches("Kafka is asked")
        self.published += [json.loads(value)["id"] for _, value in messages]
        self.side.reaches("Kafka acknowledges")
        acknowledged: Future[None] = Future()
        acknowledged.set_result(None)
        return acknowledged


@pytest.fixture
def long_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that ends only when a test ends it, however long the machine takes."""
    monkeypatch.setattr(lease, "DURATION", timedelta(hours=1))


def relay_of(side: Side, published: list[str]) -> Relay:
    return Relay(side.database, SteppedPublisher(side, published))


def an_event(campaign: MailCampaign) -> str:
    event = new_event(EmailJobPayload(type="welcome", campaign_id=campaign.id, user_id=uuid.uuid4()))
    assert outbox.enqueue(campaign.connection, [event]) == 1
    return event.id


def unpublished(connection: Connection) -> int:
    row = connection.execute(
        "SELECT count(*) FROM campaign_jobs.outbox WHERE published_at IS NULL"
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.usefixtures("long_lease")
def test_two_relays_publish_each_event_once(race: Race, connection: Connection) -> None:
    published: list[str] = []
    first, second = relay_of(race.first, published), relay_of(race.second, published)
    campaign = MailCampaign(connection)
    for schedule in race.schedules(all_pairs=False):
        ids = [an_event(campaign) for _ in range(3)]
        published.clear()
        reports: tuple[RelayReport, RelayReport] = schedule.run(
            lambda: first.run(deadline(ONE_ROUND_SECONDS)), lambda: second.run(deadline(ONE_ROUND_SECONDS))
        )
        assert published == ids
        assert sum(report.published for report in reports) == 3
        assert unpublished(connection) == 0


@pytest.mark.usefixtures("long_lease")
def test_a_lease_taken_over_loses_nothing_and_repeats_under_the_same_id(
    race: Race, connection: Connection
) -> None:
    published: list[str] = []
    first, second = relay_of(race.first, published), relay_of(race.second, published)
    campaign = MailCampaign(connection)
    for schedule in race.schedules(all_pairs=False):
        ids = [an_event(campaign) for _ in range(2)]
        published.clear()

        def take_over() -> RelayReport:
            writes(
                race.second,
                ("UPDATE campaign_jobs.leases SET expires_at = '-infinity' WHERE name = %s", ("relay",)),
            )()
            return second.run(deadline(ONE_ROUND_SECONDS))

        schedule.run(lambda: first.run(deadline(ONE_ROUND_SECONDS)), take_over)
        # Whoever lost the lease in the middle of a round may have taken nothing; the next tick looks again.
        first.run(deadline(ONE_ROUND_SECONDS))
        assert set(published) == set(ids)
        assert len(published) <= 2 * len(ids)
        assert unpublished(connection) == 0


def test_a_lease_has_one_owner_and_who_lost_it_knows(race: Race, connection: Connection) -> None:
    for schedule in race.schedules():
        name = str(uuid.uuid4())
        leases = [lease.Lease(side.database, name) for side in (race.first, race.second)]
        took = schedule.run(leases[0].take, leases[1].take)
        assert sorted(took) == [False, True]
        # The other waits, so the owner yields.
        assert not leases[took.index(True)].renew()
        assert not leases[took.index(False)].renew()


def test_two_rounds_release_a_parked_mail_once(race: Race, connection: Connection) -> None:
    published: list[str] = []
    first, second = relay_of(race.first, published), relay_of(race.second, published)
    for schedule in race.schedules(all_pairs=False):
        campaign = MailCampaign(connection)
        campaign.set(status="paused")
        delivery = campaign.asks("welcome", campaign.add_user())
        email_job(race.first, []).process([delivery], deadline())
        campaign.set(status="active")
        published.clear()
        reports: tuple[RelayReport, RelayReport] = schedule.run(first.round, second.round)
        assert sum(report.parked_mails_released for report in reports) == 1
        # Without the lease both may publish what both see.
        assert set(published) == {delivery.event.id}
        assert unpublished(connection) == 0


def test_an_event_that_commits_after_a_later_one_was_published_is_published_too(
    race: Race, connection: Connection
) -> None:
    published: list[str] = []
    relay = relay_of(race.first, published)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        late = new_event(EmailJobPayload(type="welcome", campaign_id=campaign.id, user_id=uuid.uuid4()))
        published.clear()

        def publishes_two() -> None:
            relay.round()
            an_event(campaign)
            relay.round()

        schedule.run(
            publishes_two, in_transaction(race.second, lambda stepped: outbox.enqueue(stepped, [late]))
        )
        relay.round()
        assert published.count(late.id) == 1
        assert len(published) == 2
        assert unpublished(connection) == 0
