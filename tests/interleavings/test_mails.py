"""Races of the email job with itself, and with what services do meanwhile."""

import pytest

from campaign_jobs.database.connection import Connection
from campaign_jobs.email.ses import Mail
from campaign_jobs.email.store import release_parked
from campaign_jobs.worker.outcomes import Done, Skipped
from tests.integration.email_campaign import MailCampaign
from tests.integration.reward_campaign import deadline
from tests.interleavings.mailing import came_before_the_claim, email_job, settled
from tests.interleavings.services import writes
from tests.interleavings.stepping import Race

SUPPRESS = """
INSERT INTO campaign_jobs.email_suppressions (address, reason)
SELECT lower(email), 'manual' FROM campaign_jobs.waitlist_users WHERE id = %s
"""


def test_two_deliveries_of_one_event_send_one_mail(race: Race, connection: Connection) -> None:
    sent: list[Mail] = []
    first, second = email_job(race.first, sent), email_job(race.second, sent)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        delivery = campaign.asks("verification", campaign.add_user())
        sent.clear()
        results = schedule.run(
            lambda: first.process([delivery], deadline()), lambda: second.process([delivery], deadline())
        )
        outcomes = settled(first, [delivery, delivery], [outcome for (outcome,) in results])
        assert outcomes == [Done(), Done()]
        assert len(sent) == 1
        assert campaign.statuses() == {"accepted": 1}


@pytest.mark.parametrize("type_", ["welcome", "position_update"])
def test_two_events_of_which_only_one_may_be_mailed(race: Race, connection: Connection, type_: str) -> None:
    sent: list[Mail] = []
    first, second = email_job(race.first, sent), email_job(race.second, sent)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        user = campaign.add_user(original_position=50)
        campaign.rank(user, 40)
        deliveries = [campaign.asks(type_, user), campaign.asks(type_, user)]
        sent.clear()
        results = schedule.run(
            lambda: first.process(deliveries[:1], deadline()),
            lambda: second.process(deliveries[1:], deadline()),
        )
        outcomes = settled(first, deliveries, [outcome for (outcome,) in results])
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Done", "Skipped"]
        assert len(sent) == 1
        assert campaign.statuses() == {"accepted": 1, "skipped": 1}


def test_two_batches_of_the_same_mails_in_another_order_send_each_once(
    race: Race, connection: Connection
) -> None:
    sent: list[Mail] = []
    first, second = email_job(race.first, sent), email_job(race.second, sent)
    for schedule in race.schedules(all_pairs=False):
        campaign = MailCampaign(connection)
        deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(3)]
        sent.clear()
        one, other = schedule.run(
            lambda: first.process(deliveries, deadline()),
            lambda: second.process(deliveries[::-1], deadline()),
        )
        assert settled(first, deliveries + deliveries[::-1], [*one, *other]) == [Done()] * 6
        assert len({mail.recipient for mail in sent}) == len(sent) == 3


def test_a_claim_that_ran_out_is_taken_over_and_its_holder_changes_nothing(
    race: Race, connection: Connection
) -> None:
    """The one way to a second mail: the holder was slower than its own deadline and a margin."""
    sent: list[Mail] = []
    slow, quick = email_job(race.first, sent), email_job(race.second, sent)

    for schedule in race.schedules(all_pairs=False):
        campaign = MailCampaign(connection)
        delivery = campaign.asks("welcome", campaign.add_user())
        sent.clear()

        def take_over() -> object:
            expire = (
                "UPDATE campaign_jobs.email_messages SET claimed_until = now() - interval '1 second'"
                " WHERE status = 'claimed' AND event_id = %s"
            )
            writes(race.second, (expire, (delivery.event.id,)))()
            return quick.process([delivery], deadline())

        results = schedule.run(lambda: slow.process([delivery], deadline()), take_over)
        assert settled(quick, [delivery] * 2, [outcome for (outcome,) in results]) == [Done(), Done()]
        assert 1 <= len(sent) <= 2
        row = campaign.mail(delivery, "status, ses_message_id, claim_token")
        assert row is not None and row[0] == "accepted" and row[2] is None


def test_giving_a_mail_up_and_sending_it_agree_on_what_became_of_it(
    race: Race, connection: Connection
) -> None:
    sent: list[Mail] = []
    first, second = email_job(race.first, sent), email_job(race.second, sent)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        user_reward = campaign.earn(campaign.add_reward("email"), campaign.add_user())
        user = campaign.row(user_reward, "user_id")[0]
        delivery = campaign.asks("reward_earned", user, user_reward_id=str(user_reward))
        sent.clear()
        schedule.run(
            lambda: first.process([delivery], deadline()), lambda: second.give_up([(delivery, "worn out")])
        )
        expected = ("accepted", "delivered") if sent else ("failed", "failed")
        assert (campaign.mail(delivery, "status"), campaign.row(user_reward)) == (
            (expected[0],),
            (expected[1],),
        )


def test_a_campaign_paused_meanwhile_loses_no_mail_and_doubles_none(
    race: Race, connection: Connection
) -> None:
    sent: list[Mail] = []
    job = email_job(race.first, sent)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        delivery = campaign.asks("welcome", campaign.add_user())
        sent.clear()
        pause = ("UPDATE campaign_jobs.campaigns SET status = 'paused' WHERE id = %s", (campaign.id,))
        (outcome,), _ = schedule.run(lambda: job.process([delivery], deadline()), writes(race.second, pause))
        was_paused = came_before_the_claim(schedule, race.second, race.first)
        settled(job, [delivery], [outcome])
        assert len(sent) == (0 if was_paused else 1)
        assert campaign.statuses() == {"parked" if was_paused else "accepted": 1}

        campaign.set(status="active")
        with connection.transaction():
            assert release_parked(connection, limit=10) == (1 if was_paused else 0)
        assert job.process([delivery], deadline()) == [Done()]
        assert len(sent) == 1


def test_mail_that_is_parked_while_its_campaign_goes_on_is_found_by_relay(
    race: Race, connection: Connection
) -> None:
    sent: list[Mail] = []
    job = email_job(race.first, sent)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        delivery = campaign.asks("welcome", campaign.add_user())
        campaign.set(status="paused")
        sent.clear()

        def go_on() -> None:
            writes(
                race.second,
                ("UPDATE campaign_jobs.campaigns SET status = 'active' WHERE id = %s", (campaign.id,)),
            )()
            with race.second.database.transaction() as stepped:
                release_parked(stepped, limit=10)

        schedule.run(lambda: job.process([delivery], deadline()), go_on)
        with connection.transaction():
            release_parked(connection, limit=10)
        # Sent at once, or emitted again under its id.
        rows = connection.execute(
            "SELECT count(*) FROM campaign_jobs.outbox WHERE event_id = %s", (delivery.event.id,)
        ).fetchone()
        assert rows == (1 - len(sent),)
        assert job.process([delivery], deadline()) == [Done()]
        assert len(sent) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            "UPDATE campaign_jobs.waitlist_users SET status = 'removed', deleted_at = now() WHERE id = %s",
            "the user is removed",
        ),
        ("INSERT INTO campaign_jobs.email_unsubscribes (user_id) VALUES (%s)", "the user has unsubscribed"),
        (SUPPRESS, "the address is suppressed: manual"),
    ],
    ids=["removed", "unsubscribed", "suppressed"],
)
def test_who_must_not_be_written_to_any_more_is_not_once_the_mail_is_claimed_after_it(
    race: Race, connection: Connection, change: str, reason: str
) -> None:
    sent: list[Mail] = []
    job = email_job(race.first, sent)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        user = campaign.add_user()
        connection.execute("DELETE FROM campaign_jobs.email_suppressions")
        delivery = campaign.asks("welcome", user)
        sent.clear()
        (outcome,), _ = schedule.run(
            lambda: job.process([delivery], deadline()), writes(race.second, (change, (user,)))
        )
        came_first = came_before_the_claim(schedule, race.second, race.first)
        (outcome,) = settled(job, [delivery], [outcome])
        assert outcome == (Skipped(reason) if came_first else Done())
        assert len(sent) == (0 if came_first else 1)
        # And nothing goes out later.
        again = campaign.asks("welcome", user)
        assert job.process([again], deadline()) == [Skipped(reason)]


def test_a_user_who_verifies_while_a_verification_is_repeated(race: Race, connection: Connection) -> None:
    sent: list[Mail] = []
    job = email_job(race.first, sent)
    for schedule in race.schedules():
        campaign = MailCampaign(connection)
        user = campaign.add_user()
        delivery = campaign.asks("verification", user)
        sent.clear()
        verify = (
            "UPDATE campaign_jobs.waitlist_users SET status = 'verified', verified_at = now() WHERE id = %s"
        )
        (outcome,), _ = schedule.run(
            lambda: job.process([delivery], deadline()), writes(race.second, (verify, (user,)))
        )
        came_first = came_before_the_claim(schedule, race.second, race.first)
        (outcome,) = settled(job, [delivery], [outcome])
        assert outcome == (Skipped("the user is verified already") if came_first else Done())
        assert len(sent) == (0 if came_first else 1)
