"""The demo's script: what it calls wrong is wrong in just that way, and its crowd is honest."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign_jobs import events
from campaign_jobs.errors import InvalidEvent, NotOurs
from campaign_jobs.fraud.decisions import DEFAULT_POLICY
from local.demo.cast import BadRecord, Cast, Names, TooFewPeople, make_cast
from local.demo.checks import Check
from local.demo.expectations import AFTER_UNSUBSCRIBING, AT_THE_END, STAGES, Expectations

NOW = datetime(2026, 3, 14, 12, tzinfo=UTC)


def cast_of(people: int = 300, seed: int = 1) -> Cast:
    return make_cast(Names(""), people=people, seed=seed, started_at=NOW)


def verdict(value: bytes | None) -> tuple[str, str]:
    """The owner of a record's dead letter, and its reason."""
    queue = "unroutable"
    try:
        decoded = events.read_object(value)
        job_type = events.owner(decoded["type"])
        assert job_type is not None
        queue = job_type.name
        events.parse(decoded, recorded_at=NOW)
    except (NotOurs, InvalidEvent) as error:
        return queue, str(error)
    return queue, "nothing"


@pytest.mark.parametrize("record", cast_of().bad_records, ids=lambda record: record.name)
def test_each_bad_record_breaks_the_contract_as_it_says(record: BadRecord) -> None:
    queue, reason = verdict(record.value)

    assert queue == record.queue
    assert record.reason in reason


def test_bad_records_cover_each_owner_and_each_reason_to_have_none() -> None:
    records = cast_of().bad_records

    assert {record.queue for record in records} == {"email", "position", "reward", "unroutable"}
    assert len({record.reason for record in records if record.queue == "unroutable"}) >= 12


@settings(max_examples=20, deadline=None)
@given(people=st.integers(min_value=100, max_value=1_500), seed=st.integers())
def test_the_crowd_can_be_written_and_is_honest(people: int, seed: int) -> None:
    cast = cast_of(people, seed)

    assert len(cast.people) == people
    for campaign in cast.campaigns:
        positions = [cast.original_positions[person.key] for person in cast.of(campaign)]
        assert positions == list(range(1, len(positions) + 1))
    crowd = [person for key, person in cast.people.items() if key not in cast.characters]
    for person in crowd:
        if person.referred_by is not None:
            referrer = cast.people[person.referred_by]
            assert cast.joined_at(referrer) < cast.joined_at(person)
            assert referrer.campaign == person.campaign
            assert referrer.verifies and not referrer.late
    referrals = Counter(person.referred_by for person in crowd if person.referred_by)
    assert max(referrals.values(), default=0) <= DEFAULT_POLICY.checks.velocity.threshold
    for mark in ("ip", "device", "email"):
        shared = Counter(getattr(person, mark) for person in cast.people.values())
        assert not [person.key for person in crowd if shared[getattr(person, mark)] > 1]


@settings(max_examples=20, deadline=None)
@given(people=st.integers(min_value=100, max_value=1_500), seed=st.integers())
def test_no_crowd_hides_what_becomes_of_mail(people: int, seed: int) -> None:
    cast = cast_of(people, seed)
    expectations = Expectations(cast)
    reasons = {
        person.key: (
            "the address is suppressed: bounce"
            if person.bounces
            else "the address is suppressed: complaint"
            if person.complains
            else "the user has unsubscribed"
        )
        for person in cast.people.values()
        if person.bounces or person.complains or person.unsubscribes
    }

    assert {(key, reason) for key, _, reason in expectations.withheld_mails} >= set(reasons.items())
    of_annoyed = {type_ for key, type_, _ in expectations.withheld_mails if key == "annoyed"}
    assert of_annoyed == {"milestone", "position_update", "reward_earned"}
    # Each has a link to unsubscribe by, and something to get afterwards.
    for person in cast.people.values():
        if person.unsubscribes:
            assert expectations.gets("welcome", person) or expectations.gets("position_update", person)
            assert expectations.gets("reward_earned", person)
    # Whether SES's report or such a mail came first would be a matter of luck.
    told_early = set.union(*expectations.told[: STAGES.index(AFTER_UNSUBSCRIBING)])
    assert not told_early & {key for key in reasons if key != "hesitant"}


def test_without_ses_of_our_own_nobody_answers_mail() -> None:
    cast = make_cast(Names(""), people=300, seed=1, started_at=NOW, own_ses=False)
    expectations = Expectations(cast)

    assert {key for key, _, _ in expectations.withheld_mails} == {"bounced", "quiet"}
    assert expectations.gets("milestone", cast.people["annoyed"])
    assert expectations.mails["verification", cast.people["mistyped-1"].email] == 2


def test_the_same_seed_makes_the_same_launch() -> None:
    assert cast_of(seed=7).people == cast_of(seed=7).people
    assert cast_of(seed=7).people != cast_of(seed=8).people


def test_fewer_people_than_characters_are_refused() -> None:
    with pytest.raises(TooFewPeople, match="--people 10: allowed are"):
        cast_of(people=10)


def test_the_champion_is_slow_and_the_farmer_is_not() -> None:
    cast = cast_of()
    threshold = DEFAULT_POLICY.checks.velocity.threshold

    def within_an_hour(referrer: str) -> int:
        moments = [
            cast.joined_at(person) for person in cast.people.values() if person.referred_by == referrer
        ]
        return max(
            sum(start <= other <= start + timedelta(hours=1) for other in moments) for start in moments
        )

    assert within_an_hour("champion") <= threshold < within_an_hour("farmer")


def test_a_dismissed_case_counts_again_and_a_confirmed_one_does_not() -> None:
    expectations = Expectations(cast_of())
    counted = expectations.counted_referrals("orbit", AT_THE_END)

    assert counted["sibling-1"] == 1
    assert "farmer" not in counted
    states = {(reward.reward, reward.person): reward.status for reward in expectations.user_rewards}
    assert states["early-access", "sibling-1"] == "delivered"
    assert states["early-access", "farmer"] == "revoked"


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "b: expected 2, found 3"),
        ({"a"}, {"b"}, "missing: a; not expected: b"),
        (1, 2, "expected 1, found 2"),
        (dict.fromkeys(range(9), 0), {}, "and 4 more"),
    ],
)
def test_a_check_that_does_not_hold_says_what_differs(
    expected: object, found: object, difference: str
) -> None:
    check = Check("totals", expected, found)

    assert not check.holds
    assert difference in check.difference()
