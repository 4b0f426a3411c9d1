"""What a run writes: positions as the formula and the ranking say, and mails about better ones."""

import uuid
from datetime import timedelta
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.events import EmailEvent, as_json, parse
from campaign_jobs.position import decisions
from campaign_jobs.position.decisions import Referral, Standing
from campaign_jobs.position.run import Run, recalculate
from tests.integration.position_campaign import LAUNCH, Campaign

USER_STATUSES = ("pending", "verified", "converted", "removed", "blocked")
REFERRAL_STATUSES = ("pending", "verified", "converted", "invalid")
CASES = (("open", True), ("open", False), ("confirmed", True), ("dismissed", True), ("retracted", True))


@st.composite
def histories(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(0, 12))
    people = range(count)
    return {
        "points": draw(st.integers(0, 4)),
        "originals": draw(st.lists(st.integers(1, 20), min_size=count, max_size=count, unique=True)),
        "statuses": draw(st.lists(st.sampled_from(USER_STATUSES), min_size=count, max_size=count)),
        "hours": draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)),
        # At most one referral for each referred user.
        "referrals": [
            (draw(st.sampled_from(people)), referred, draw(st.sampled_from(REFERRAL_STATUSES)))
            for referred in people
            if draw(st.booleans())
        ],
        "cases": [
            (person, *draw(st.sampled_from(CASES))) for person in people if draw(st.integers(0, 3)) == 0
        ],
        "changes": draw(
            st.lists(
                st.tuples(
                    st.sampled_from(("user", "referral", "referrer", "points", "case", "original")),
                    st.integers(0, 30),
                    st.integers(0, 30),
                ),
                max_size=4,
            )
        ),
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories())
def test_stored_positions_are_those_of_the_reference_whatever_happened(
    database: Database, connection: Connection, history: dict[str, Any]
) -> None:
    campaign = Campaign(connection, points=history["points"])
    # The smaller the id, the later the user: a tie broken by position in the table would show.
    users = [
        UUID(int=(campaign.id.int & ~0xFF) + 255 - number) for number in range(len(history["originals"]))
    ]
    people = zip(users, history["originals"], history["statuses"], history["hours"], strict=True)
    campaign.add_user_rows(
        [(user, place, status, LAUNCH + timedelta(hours=hour)) for user, place, status, hour in people]
    )
    for referrer, referred, status in history["referrals"]:
        if referrer != referred:
            campaign.refer(users[referrer], users[referred], status)
    for person, status, holding in history["cases"]:
        campaign.hold(users[person], status, holding)
    run_all(database, campaign)
    assert stored(connection, campaign) == expected(connection, campaign)

    # Each change leaves its own request, so the plain run sees it.
    for kind, which, value in history["changes"]:
        change(connection, campaign, users, kind, which, value)
        run_all(database, campaign)
        assert stored(connection, campaign) == expected(connection, campaign), kind
    assert campaign.waiting() == 0
    assert recalculate(database, campaign.id, thorough=True) == Run(0, True, changed=0, left=0, told=0)


def run_all(database: Database, campaign: Campaign) -> None:
    while recalculate(database, campaign.id) is not None:
        pass


def change(
    connection: Connection, campaign: Campaign, users: list[UUID], kind: str, which: int, value: int
) -> None:
    user = users[which % len(users)] if users else uuid.uuid4()
    statements: dict[str, tuple[str, tuple[Any, ...]]] = {
        "user": (
            "UPDATE campaign_jobs.waitlist_users SET status = %s, verified_at = now() WHERE id = %s",
            (USER_STATUSES[value % 5], user),
        ),
        "original": (
            "UPDATE campaign_jobs.waitlist_users SET original_position = %s WHERE id = %s",
            (100 + 100 * value + which, user),
        ),
        "referral": (
            "UPDATE campaign_jobs.referrals SET status = %s, verified_at = now() WHERE referred_id = %s",
            (REFERRAL_STATUSES[value % 4], user),
        ),
        "referrer": (
            "UPDATE campaign_jobs.referrals SET referrer_id = %s WHERE referred_id = %s AND referred_id <> %s",
            (
                users[value % len(users)] if users else user,
                user,
                users[value % len(users)] if users else user,
            ),
        ),
        "points": (
            "UPDATE campaign_jobs.campaigns SET points_per_referral = %s WHERE id = %s",
            (value % 5, campaign.id),
        ),
        "case": (
            "UPDATE campaign_jobs.fraud_cases SET holding = NOT holding, blocking = false WHERE user_id = %s",
            (user,),
        ),
    }
    connection.execute(*statements[kind])


def stored(connection: Connection, campaign: Campaign) -> dict[UUID, tuple[int, int, int]]:
    """Position, score and verified referrals of each user, as the last run left them."""
    rows = connection.execute(
        "SELECT user_id, position, score, verified_referrals FROM campaign_jobs.user_positions WHERE campaign_id = %s",
        (campaign.id,),
    ).fetchall()
    return {user: (position, score, count) for user, position, score, count in rows}


def expected(connection: Connection, campaign: Campaign) -> dict[UUID, tuple[int, int, int]]:
    """What the reference makes of the rows that are there now."""
    held = {
        user
        for user, status, holding in connection.execute(
            "SELECT user_id, status, holding FROM campaign_jobs.fraud_cases WHERE campaign_id = %s",
            (campaign.id,),
        )
        if status == "confirmed" or (status == "open" and holding)
    }
    counts = decisions.verified_referrals(
        (
            Referral(*row)
            for row in connection.execute(
                "SELECT referrer_id, referred_id, status FROM campaign_jobs.referrals WHERE campaign_id = %s",
                (campaign.id,),
            )
        ),
        held,
    )
    standings = [
        Standing(user, place, created_at, counts.get(user, 0))
        for user, place, created_at, status in connection.execute(
            "SELECT id, original_position, created_at, status FROM campaign_jobs.waitlist_users WHERE campaign_id = %s",
            (campaign.id,),
        )
        if decisions.is_ranked(status)
    ]
    points = campaign.points_now()
    positions = decisions.rank(standings, points)
    return {
        standing.user_id: (
            positions[standing.user_id],
            decisions.score(standing.original_position, standing.verified_referrals, points),
            standing.verified_referrals,
        )
        for standing in standings
    }


def test_a_score_may_be_below_the_range_of_an_integer(database: Database, connection: Connection) -> None:
    campaign = Campaign(connection, points=2_147_483_647)
    users = campaign.add_users(4)
    for referred in users[:3]:
        campaign.refer(users[3], referred)
    recalculate(database, campaign.id)
    assert list(campaign.positions()) == [users[3], *users[:3]]
    row = connection.execute(
        "SELECT score FROM campaign_jobs.user_positions WHERE user_id = %s", (users[3],)
    ).fetchone()
    assert row == (4 - 3 * 2_147_483_647,)


def test_only_changed_rows_are_written(database: Database, connection: Connection) -> None:
    campaign = Campaign(connection)
    users = campaign.add_users(6)
    assert recalculate(database, campaign.id) == Run(1, True, changed=6, left=0, told=0)
    campaign.refer(users[3], users[5])
    # From 4 with a score of 3: the tie with the third goes to more referrals.
    assert recalculate(database, campaign.id) == Run(1, True, changed=2, left=0, told=1)
    campaign.set_status(users[4], "blocked")
    assert recalculate(database, campaign.id) == Run(1, True, changed=1, left=1, told=1)


def told(connection: Connection, campaign: Campaign) -> list[tuple[UUID, int, int]]:
    """Who was told of which position, and which one before, in the order of the positions."""
    rows = connection.execute(
        "SELECT event FROM campaign_jobs.outbox WHERE event ->> 'campaign_id' = %s", (str(campaign.id),)
    ).fetchall()
    events = [parse(row[0], recorded_at=LAUNCH) for row in rows]
    assert all(
        isinstance(event, EmailEvent) and event.type == "job.email.position_update" for event in events
    )
    connection.execute("DELETE FROM campaign_jobs.outbox")
    return sorted(
        (
            (
                event.data.user_id,
                int(event.data.template_data["position"]),
                int(event.data.template_data["previous_position"]),
            )
            for event in events
            if isinstance(event, EmailEvent)
        ),
        key=lambda entry: entry[1],
    )


def test_who_improved_by_the_minimum_is_told_once(database: Database, connection: Connection) -> None:
    campaign = Campaign(connection, min_delta=2)
    users = campaign.add_users(10)
    recalculate(database, campaign.id)
    assert told(connection, campaign) == []

    campaign.refer(users[8], users[0])
    recalculate(database, campaign.id)
    assert told(connection, campaign) == [], "one place is less than the minimum"

    campaign.refer(users[8], users[1])
    recalculate(database, campaign.id)
    assert told(connection, campaign) == [(users[8], 7, 9)], "small steps add up"

    connection.execute(
        "UPDATE campaign_jobs.referrals SET status = 'invalid' WHERE referrer_id = %s", (users[8],)
    )
    recalculate(database, campaign.id)
    assert campaign.positions()[users[8]] == 9
    connection.execute(
        "UPDATE campaign_jobs.referrals SET status = 'verified' WHERE referrer_id = %s", (users[8],)
    )
    recalculate(database, campaign.id)
    assert told(connection, campaign) == [], "worse and back again is no news"


def test_a_first_ranking_tells_those_who_are_better_than_their_original_position(
    database: Database, connection: Connection
) -> None:
    campaign = Campaign(connection)
    rows = [
        (uuid.uuid4(), place, status, LAUNCH)
        for place, status in ((1, "removed"), (2, "pending"), (3, "blocked"))
    ]
    last = uuid.uuid4()
    campaign.add_user_rows([*rows, (last, 4, "pending", LAUNCH)])
    recalculate(database, campaign.id)
    assert told(connection, campaign) == [(rows[1][0], 1, 2), (last, 2, 4)]


def test_a_campaign_that_is_not_active_tells_nobody_until_it_goes_on(
    database: Database, connection: Connection
) -> None:
    campaign = Campaign(connection)
    users = campaign.add_users(3)
    recalculate(database, campaign.id)
    connection.execute("UPDATE campaign_jobs.campaigns SET status = 'paused' WHERE id = %s", (campaign.id,))
    campaign.refer(users[2], users[0])
    recalculate(database, campaign.id)
    assert campaign.positions()[users[2]] == 2
    assert told(connection, campaign) == []

    connection.execute("UPDATE campaign_jobs.campaigns SET status = 'active' WHERE id = %s", (campaign.id,))
    recalculate(database, campaign.id)
    assert told(connection, campaign) == [(users[2], 2, 3)]


def test_the_mail_is_an_event_as_the_contract_writes_it(database: Database, connection: Connection) -> None:
    campaign = Campaign(connection)
    account_id = uuid.uuid4()
    connection.execute(
        "UPDATE campaign_jobs.campaigns SET account_id = %s WHERE id = %s", (account_id, campaign.id)
    )
    users = campaign.add_users(2)
    campaign.refer(users[1], users[0])
    recalculate(database, campaign.id)
    row = connection.execute("SELECT event_id, partition_key, event FROM campaign_jobs.outbox").fetchone()
    assert row is not None
    event_id, key, event = row
    assert key == str(users[1])
    parsed = parse(event, recorded_at=LAUNCH)
    assert as_json(parsed) == event
    assert (parsed.id, parsed.account_id) == (event_id, str(account_id))
