"""The email job at its boundaries."""

from collections import Counter
from typing import Any
from uuid import UUID

from campaign_jobs import catalog
from campaign_jobs.catalog import EMAIL
from campaign_jobs.database.connection import Connection
from tests.crash.aws import MAX_SEND_RATE
from tests.crash.scenario import Rest, Scenario, retried
from tests.integration.email_campaign import MailCampaign

PEOPLE = [f"person{number}@example.org" for number in range(1, 12)]


def _messages(rest: Rest) -> dict[str, str]:
    """What became of each person's mail, with the reason."""
    rows = rest.rows(
        "SELECT email, messages.status || coalesce(': ' || reason, '') FROM campaign_jobs.email_messages AS messages"
        " JOIN campaign_jobs.waitlist_users AS users ON users.id = user_id"
        " WHERE coalesce(ses_message_id, '') <> 'seeded'"
    )
    return dict(rows)  # type: ignore[arg-type]


def _told(campaign: MailCampaign, user: UUID, position: int, event_id: str) -> None:
    """A position update that was accepted two days ago."""
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.email_messages"
        " (event_id, type, campaign_id, user_id, status, ses_message_id, position, accepted_at)"
        " VALUES (%s, 'position_update', %s, %s, 'accepted', 'seeded', %s, now() - interval '2 days')",
        (event_id, campaign.id, user, position),
    )


def _first_lane(connection: Connection) -> list[Any]:
    campaign = MailCampaign(connection)
    users = [campaign.add_user() for _ in range(9)]
    by_mail = campaign.add_reward("email")
    earned, held, unverifiable = campaign.earn(by_mail, users[2]), campaign.earn(by_mail, users[6]), users[5]
    campaign.change_user(unverifiable, verified_at="2026-01-01", status="verified")
    campaign.open_case(held)
    connection.execute("UPDATE campaign_jobs.user_rewards SET status = 'delivering'")
    elsewhere = MailCampaign(connection)
    elsewhere.people = 20
    in_paused = elsewhere.add_user()
    elsewhere.set(status="paused")
    return [
        campaign.event("verification", users[0], priority=1),
        campaign.event("welcome", users[1]),
        campaign.event("reward_earned", users[2], user_reward_id=str(earned)),
        campaign.event("verification", users[3]),  # refused
        campaign.event("welcome", users[4]),  # throttled once
        campaign.event("verification", unverifiable),
        campaign.event("reward_earned", users[6], user_reward_id=str(held)),
        elsewhere.event("welcome", in_paused),
        campaign.event("welcome", UUID(int=1)),  # a user who never comes
        {**campaign.event("welcome", users[8]), "data": {"type": "welcome"}},  # invalid
    ]


def _first_lane_ends(rest: Rest) -> None:
    assert _messages(rest) == {
        PEOPLE[0]: "accepted",
        PEOPLE[1]: "accepted",
        PEOPLE[2]: "accepted",
        PEOPLE[3]: "failed: SES refused the mail: MessageRejected",
        PEOPLE[4]: "accepted",
        PEOPLE[5]: "skipped: the user is verified already",
        PEOPLE[6]: "skipped: a fraud case holds the reward",
        "person21@example.org": "parked: the campaign is paused",
    }
    assert rest.outside.mails == Counter([*PEOPLE[:3], PEOPLE[4]])
    assert Counter(rest.rows("SELECT status, held_at IS NULL FROM campaign_jobs.user_rewards")) == {
        ("delivered", True): 1,
        ("earned", False): 1,
    }
    assert len(rest.outside.dead_letters) == 3


def _bulk_lane(connection: Connection) -> list[Any]:
    campaign = MailCampaign(connection)
    users = [campaign.add_user() for _ in range(3)]
    for number, user in enumerate(users):
        campaign.rank(user, 1)
        _told(campaign, user, 10 + number, f"told-{number}")
    # A full bucket: an empty one takes a while to rise above the lane's reserve, and a slow run would ask less often.
    connection.execute(
        "INSERT INTO campaign_jobs.send_tokens (name, rate, tokens, looked_up_at)"
        " VALUES ('ses', %(rate)s, %(rate)s, now() + interval '1 day')",
        {"rate": MAX_SEND_RATE},
    )
    return [
        campaign.event("position_update", users[0]),
        campaign.event("position_update", users[1]),
        campaign.event("milestone", users[2], milestone=5),
    ]


def _bulk_lane_ends(rest: Rest) -> None:
    assert _messages(rest) == dict.fromkeys(PEOPLE[:3], "accepted")
    assert rest.outside.mails == Counter(PEOPLE[:3])


def _released_before(connection: Connection) -> list[Any]:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    connection.execute("UPDATE campaign_jobs.user_rewards SET status = 'delivering'")
    event = campaign.event("reward_earned", user, user_reward_id=str(user_reward))
    connection.execute(
        "INSERT INTO campaign_jobs.email_messages"
        " (event_id, type, campaign_id, user_id, user_reward_id, once_key, status, reason)"
        " VALUES (%s, 'reward_earned', %s, %s, %s, %s, 'released', 'SES failed')",
        (event["id"], campaign.id, user, user_reward, f"reward_earned:{user_reward}"),
    )
    return [retried(event, attempts=1)]


def _released_before_ends(rest: Rest) -> None:
    assert _messages(rest) == {PEOPLE[0]: "accepted"}
    assert rest.outside.mails == Counter(PEOPLE[:1])
    assert rest.rows("SELECT status FROM campaign_jobs.user_rewards") == [("delivered",)]


def _last_attempt(connection: Connection) -> list[Any]:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    connection.execute("UPDATE campaign_jobs.user_rewards SET status = 'delivering'")
    return [
        retried(
            campaign.event("reward_earned", user, user_reward_id=str(user_reward)),
            attempts=EMAIL.max_attempts - 1,
        )
    ]


def _last_attempt_ends(rest: Rest) -> None:
    ((reason,),) = rest.rows("SELECT last_error FROM campaign_jobs.user_rewards WHERE status = 'failed'")
    assert reason.endswith(f"(gave up after {EMAIL.max_attempts} attempts)")
    assert _messages(rest) == {PEOPLE[0]: f"failed: {reason}"}
    assert len(rest.outside.dead_letters) == 1
    assert not rest.outside.mails


def _three_verifications(connection: Connection) -> list[Any]:
    campaign = MailCampaign(connection)
    return [campaign.event("verification", campaign.add_user()) for _ in range(3)]


def _all_sent(rest: Rest) -> None:
    assert _messages(rest) == dict.fromkeys(PEOPLE[:3], "accepted")
    assert rest.outside.mails == Counter(PEOPLE[:3])


def _dismissed_meanwhile(connection: Connection) -> list[Any]:
    """The case that holds a reward is dismissed after its mail was decided about."""
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    user_reward = campaign.earn(campaign.add_reward("email"), user)
    campaign.open_case(user_reward)
    connection.execute("UPDATE campaign_jobs.user_rewards SET status = 'delivering'")
    connection.execute(
        "CREATE FUNCTION campaign_jobs.dismiss() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE campaign_jobs.fraud_cases SET status = 'dismissed', decided_at = now(), decision_reason = 'seen';"
        " RETURN NEW; END $$"
    )
    connection.execute(
        "CREATE TRIGGER dismiss BEFORE INSERT ON campaign_jobs.email_messages"
        " FOR EACH ROW EXECUTE FUNCTION campaign_jobs.dismiss()"
    )
    return [campaign.event("reward_earned", user, user_reward_id=str(user_reward))]


def _asked_for_again(rest: Rest) -> None:
    assert rest.rows("SELECT status, held_at FROM campaign_jobs.user_rewards") == [("earned", None)]
    assert rest.rows("SELECT event->>'type' FROM campaign_jobs.outbox") == [("job.reward.deliver",)]
    assert not rest.outside.mails


def _one_row_refused(connection: Connection) -> list[Any]:
    """The second is refused three times: with the batch, with its half, and alone."""
    campaign = MailCampaign(connection)
    users = [campaign.add_user() for _ in range(3)]
    connection.execute("CREATE SEQUENCE campaign_jobs.refusals")
    connection.execute(
        "CREATE FUNCTION campaign_jobs.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('campaign_jobs.refusals') <= 3 THEN"
        " RAISE EXCEPTION 'refused' USING ERRCODE = 'check_violation'; END IF; RETURN NEW; END $$"
    )
    connection.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON campaign_jobs.email_messages"
        f" FOR EACH ROW WHEN (NEW.user_id = '{users[1]}') EXECUTE FUNCTION campaign_jobs.refuse()"
    )
    return [campaign.event("verification", user, f"event-{number}") for number, user in enumerate(users)]


def _unreadable(_: Connection) -> list[Any]:
    return ["not one of ours"]


def _one_dead_letter(rest: Rest) -> None:
    assert len(rest.outside.dead_letters) == 1


def _one_verification_again(connection: Connection) -> list[Any]:
    return [retried(_three_verifications(connection)[0], attempts=1)]


def _sent_and_nobody_lost(rest: Rest) -> None:
    assert rest.rows("SELECT status FROM campaign_jobs.email_messages") == [("accepted",)]
    assert list(rest.outside.mails.values()) == [1]
    assert not rest.outside.dead_letters


SCENARIOS = [
    Scenario(
        name="email: a batch with every outcome",
        function="email",
        source="kafka",
        seed=_first_lane,
        ses={PEOPLE[3]: ["reject", "for ever"], PEOPLE[4]: ["throttle"]},
        expect=_first_lane_ends,
        constants={"campaign_jobs.email.sending:FIRST_PAUSE_SECONDS": 0.0},
    ),
    Scenario(
        name="email: the bulk lane",
        function="email",
        lane="email-bulk",
        source="kafka",
        seed=_bulk_lane,
        expect=_bulk_lane_ends,
    ),
    Scenario(
        name="email: a retry of a mail that was released",
        function="email",
        source="retry queue",
        seed=_released_before,
        expect=_released_before_ends,
    ),
    Scenario(
        name="email: the last attempt fails",
        function="email",
        source="retry queue",
        seed=_last_attempt,
        ses={PEOPLE[0]: ["fail", "for ever"]},
        expect=_last_attempt_ends,
    ),
    Scenario(
        name="email: no time after the first pool-full",
        function="email",
        source="kafka",
        seed=_three_verifications,
        late_after=("after SES POST /email/outbound-emails in email.ses:SesSender.send", 2),
        expect=_all_sent,
    ),
    Scenario(
        name="email: the account may not send at first",
        function="email",
        source="kafka",
        seed=_three_verifications,
        account=["disabled"],
        expect=_all_sent,
    ),
    Scenario(
        name="email: the account has been stopped for so long that SQS would give up",
        function="email",
        source="retry queue",
        seed=_one_verification_again,
        account=["disabled"],
        receives=catalog.RETRY_MAX_RECEIVES - 1,
        expect=_sent_and_nobody_lost,
    ),
    Scenario(
        name="email: the rate cannot be learned at first",
        function="email",
        source="kafka",
        seed=_three_verifications,
        account=["fail"],
        expect=_all_sent,
    ),
    Scenario(
        name="email: a hold that ends meanwhile",
        function="email",
        source="kafka",
        seed=_dismissed_meanwhile,
        expect=_asked_for_again,
    ),
    Scenario(
        name="email: a row that PostgreSQL refuses",
        function="email",
        source="kafka",
        seed=_one_row_refused,
        expect=_all_sent,
    ),
    Scenario(
        name="email: an unreadable message",
        function="email",
        source="retry queue",
        seed=_unreadable,
        expect=_one_dead_letter,
    ),
]
