"""What the plan of a replay says."""

import uuid
from datetime import UTC, datetime
from typing import TypeVar

from campaign_jobs.relay.heartbeats import heartbeat
from campaign_jobs_cli.errors import ExitCode
from campaign_jobs_cli.targets import Target
from tests.cli.operating.conftest import Type
from tests.cli.operating.replaying import Publish, accepted, deliver, ids, mail, outcomes, plan, value
from tests.integration.email_campaign import MailCampaign

Found = TypeVar("Found")


def test_the_plan_counts_what_is_no_event(type_: Type, publish: Publish, campaign: MailCampaign) -> None:
    user = campaign.add_user()
    good = mail(campaign, user, "good")
    publish([("k", good), ("k", good), ("k", heartbeat(0, datetime.now(UTC))), (None, b"\xff")])
    publish([("k", value("job.email.welcome", {}, "invalid"))])
    ran = plan(type_)
    counted = {
        name: ran.json[name]
        for name in (
            "records",
            "heartbeats",
            "no_events",
            "invalid",
            "repeated",
            "other_events",
            "events",
            "mails",
        )
    }
    assert counted == {
        "records": 5,
        "heartbeats": 1,
        "no_events": 1,
        "invalid": 1,
        "repeated": 1,
        "other_events": 0,
        "events": 1,
        "mails": 1,
    }
    assert plan(type_, "--type", "reward").json["other_events"] == 2


def test_the_plan_says_what_would_become_of_mails(
    type_: Type, publish: Publish, campaign: MailCampaign
) -> None:
    sent, removed, fresh, paused = (campaign.add_user() for _ in range(4))
    other = MailCampaign(campaign.connection)
    other.set(status="paused")
    paused = other.add_user()
    accepted(campaign, sent, "sent")
    campaign.change_user(removed, status="removed")
    publish(
        [
            ("k", mail(campaign, sent, "sent")),
            ("k", mail(campaign, removed, "removed")),
            ("k", mail(campaign, fresh, "fresh")),
            # Another event of the same welcome mail.
            ("k", mail(campaign, fresh, "fresh again")),
            ("k", mail(campaign, fresh, "verify", "verification")),
            ("k", mail(campaign, fresh, "verify again", "verification")),
            ("k", mail(campaign, uuid.uuid4(), "nobody", "milestone", milestone=1)),
            ("k", mail(other, paused, "paused")),
        ]
    )
    ran = plan(type_)
    found = {
        (row["type"], row["fate"], row["outcome"]): (row["events"], row["mails"])
        for row in ran.json["outcomes"]
    }
    welcome = "job.email.welcome"
    assert found == {
        (welcome, "done already", "its mail was accepted"): (1, 0),
        (welcome, "would be skipped", "the user is removed"): (1, 0),
        (welcome, "would run", "its mail goes out"): (1, 1),
        (welcome, "would be skipped", "another event of this replay is for the same"): (1, 0),
        ("job.email.verification", "would run", "its mail goes out"): (2, 2),
        ("job.email.milestone", "would fail", "there is no user"): (1, 0),
        (welcome, "would wait", "the campaign is paused"): (1, 0),
    }
    assert (ran.json["events"], ran.json["mails"]) == (8, 3)


def test_what_became_of_mails_so_long_ago_is_not_known(
    type_: Type, publish: Publish, campaign: MailCampaign
) -> None:
    publish([("k", mail(campaign, campaign.add_user(), "old"))])
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.retention (table_name, kept_since) VALUES ('email_messages', now())"
        " ON CONFLICT (table_name) DO UPDATE SET kept_since = EXCLUDED.kept_since"
    )
    for words in ((), ("--again",)):
        ran = plan(type_, *words)
        assert outcomes(ran) == {
            ("email.welcome", "would be skipped"): (
                "too old: what became of an event of that time is kept no longer",
                1,
                0,
            )
        }


def test_the_plan_says_what_would_become_of_rewards_and_positions(
    type_: Type, publish: Publish, campaign: MailCampaign
) -> None:
    by_mail, by_hand = campaign.add_reward("email"), campaign.add_reward("manual")
    hook = campaign.add_reward("webhook", campaign.add_endpoint("https://example.com"))
    user = campaign.add_user()
    mailed, manual, hooked, delivered = (
        campaign.earn(reward, user if reward == by_mail else None)
        for reward in (by_mail, by_hand, hook, hook)
    )
    campaign.connection.execute(
        "UPDATE campaign_jobs.user_rewards SET status = 'delivered', delivered_at = now() WHERE id = %s",
        (delivered,),
    )
    publish(
        [
            ("k", deliver(mailed, "mailed")),
            ("k", mail(campaign, user, "its mail", "reward_earned", user_reward_id=str(mailed))),
            ("k", deliver(manual, "manual")),
            ("k", deliver(hooked, "hooked")),
            ("k", deliver(hooked, "hooked again")),
            ("k", deliver(delivered, "delivered")),
            ("k", deliver(uuid.uuid4(), "nobody's")),
            ("k", value("job.position.recalculate", {"campaign_id": str(campaign.id)}, "position")),
            ("k", value("job.position.recalculate", {"campaign_id": str(uuid.uuid4())}, "no campaign")),
        ]
    )
    ran = plan(type_)
    found = {(row["fate"], row["outcome"]): (row["events"], row["mails"]) for row in ran.json["outcomes"]}
    # One mail, which both the reward and its mail's own event lead to.
    assert ran.json["mails"] == 1
    assert found["would run", "its webhook is sent"] == (1, 0)
    assert found["would be skipped", "another event of this replay is for the same"][0] >= 1
    assert found["would be skipped", "manual delivery waits for an operator"] == (1, 0)
    assert found["done already", "the user reward is delivered"] == (1, 0)
    assert found["would fail", "there is no user reward"] == (1, 0)
    assert found["would run", "positions are calculated from what is stored"] == (1, 0)
    assert found["would fail", "there is no campaign"] == (1, 0)
    assert sum(events for events, _ in found.values()) == 9


def test_a_plan_changes_nothing(
    type_: Type, publish: Publish, campaign: MailCampaign, target: Target
) -> None:
    publish([("k", mail(campaign, campaign.add_user(), "event"))])
    plan(type_)
    declined = type_("replay", "--from", "beginning")
    assert declined.code == ExitCode.DECLINED
    assert "its mail goes out" in declined.out
    assert ids(target) == {"event": 1}
    assert campaign.statuses() == {}
