"""The score, the rank, and when the rank is what the formula says."""

import uuid
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from campaign_jobs.position.decisions import (
    Referral,
    Standing,
    is_ranked,
    is_worth_telling,
    rank,
    score,
    verified_referrals,
)

LAUNCH = datetime(2026, 3, 1, tzinfo=UTC)

standings = st.lists(
    st.builds(
        Standing,
        user_id=st.uuids(),
        original_position=st.integers(1, 30),
        created_at=st.integers(0, 3).map(lambda hours: LAUNCH + timedelta(hours=hours)),
        verified_referrals=st.integers(0, 6),
    ),
    unique_by=(lambda standing: standing.user_id, lambda standing: standing.original_position),
    max_size=20,
)


@given(standings, st.integers(0, 5))
def test_ranks_are_unique_from_1_to_n_and_ordered_by_score(people: list[Standing], points: int) -> None:
    positions = rank(people, points)
    assert sorted(positions.values()) == list(range(1, len(people) + 1))
    by_position = sorted(people, key=lambda person: positions[person.user_id])
    keys = [
        (score(person.original_position, person.verified_referrals, points), -person.verified_referrals)
        for person in by_position
    ]
    assert keys == sorted(keys)


@given(
    st.sets(st.integers(1, 25), min_size=1, max_size=15),
    st.data(),
    st.integers(0, 30),
    st.integers(0, 5),
)
def test_with_one_mover_the_rank_is_the_formula_if_and_only_if_the_places_before_it_are_filled(
    originals: set[int], data: st.DataObject, referrals: int, points: int
) -> None:
    mover = data.draw(st.sampled_from(sorted(originals)))
    people = [
        Standing(
            uuid.UUID(int=place), place, LAUNCH + timedelta(minutes=place), referrals if place == mover else 0
        )
        for place in originals
    ]
    moved_to = score(mover, referrals, points)
    smaller = sum(place < moved_to for place in originals - {mover})
    is_formula = rank(people, points)[uuid.UUID(int=mover)] == max(1, moved_to)
    assert is_formula == (smaller == max(0, moved_to - 1))


@given(st.integers(1, 25), st.data(), st.integers(0, 30), st.integers(0, 5))
def test_dense_original_positions_suffice_for_the_formula(
    count: int, data: st.DataObject, referrals: int, points: int
) -> None:
    mover = data.draw(st.integers(1, count))
    people = [
        Standing(uuid.UUID(int=place), place, LAUNCH, referrals if place == mover else 0)
        for place in range(1, count + 1)
    ]
    assert rank(people, points)[uuid.UUID(int=mover)] == max(1, score(mover, referrals, points))


def test_ties_go_to_more_referrals_then_to_who_came_first_then_to_the_smaller_id() -> None:
    more = Standing(uuid.UUID(int=9), 5, LAUNCH + timedelta(hours=9), verified_referrals=4)
    early = Standing(uuid.UUID(int=8), 4, LAUNCH, verified_referrals=3)
    small = Standing(uuid.UUID(int=1), 2, LAUNCH + timedelta(hours=1), verified_referrals=1)
    large = Standing(uuid.UUID(int=2), 2, LAUNCH + timedelta(hours=1), verified_referrals=1)
    first = Standing(uuid.UUID(int=3), 2, LAUNCH, verified_referrals=1)
    positions = rank([large, small, first, early, more], 1)
    assert [positions[person.user_id] for person in (more, early, first, small, large)] == [1, 2, 3, 4, 5]


def test_only_verified_and_converted_referrals_without_a_hold_on_either_side_count() -> None:
    ann, bob, cat, dan, eve = (uuid.UUID(int=number) for number in range(5))
    referrals = [
        Referral(ann, bob, "verified"),
        Referral(ann, cat, "converted"),
        Referral(ann, dan, "pending"),
        Referral(ann, eve, "invalid"),
        Referral(bob, ann, "verified"),
    ]
    assert verified_referrals(referrals, held=[]) == {ann: 2, bob: 1}
    assert verified_referrals(referrals, held=[cat]) == {ann: 1, bob: 1}
    assert verified_referrals(referrals, held=[ann]) == {}


def test_who_is_ranked_and_who_is_told() -> None:
    assert [is_ranked(status) for status in ("pending", "verified", "converted", "removed", "blocked")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert is_worth_telling(10, 7, min_delta=3)
    assert not is_worth_telling(10, 8, min_delta=3)
    assert not is_worth_telling(10, 11, min_delta=1)
