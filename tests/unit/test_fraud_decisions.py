"""Policies, bands and risk scores."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_jobs.fraud.decisions import (
    DEFAULT_POLICY,
    EVIDENCE_SHOWN_PER_CHECK,
    PRESETS,
    Policy,
    Signal,
    assess,
    band,
    read_policy,
)


def signal(
    check: str, weight: int, *, key: str = "key", magnitude: int = 1, dismissed: int | None = None
) -> Signal:
    return Signal(check, key, weight, magnitude, {}, dismissed)


SIGNALS = st.builds(
    Signal,
    check=st.sampled_from(["bot", "velocity", "duplicate_ip"]),
    evidence_key=st.text(max_size=3),
    weight=st.integers(0, 100),
    magnitude=st.integers(1, 1_000_000),
    evidence=st.just({}),
    dismissed_band=st.none() | st.integers(0, 20),
)


def test_the_strongest_of_a_check_counts_and_checks_add_up() -> None:
    found = assess(
        [signal("bot", 40), signal("duplicate_ip", 20), signal("duplicate_ip", 15)], DEFAULT_POLICY
    )
    assert (found.risk_score, found.makes_case, found.holding) == (60, True, False)


def test_a_score_ends_at_a_hundred() -> None:
    assert assess([signal("bot", 90), signal("velocity", 90)], DEFAULT_POLICY).risk_score == 100


@pytest.mark.parametrize(
    ("weight", "makes_case", "high"),
    [(29, False, False), (30, True, False), (79, True, False), (80, True, True)],
)
@pytest.mark.parametrize(
    ("policy", "holds", "blocks"), [("flag", False, False), ("hold", True, False), ("block", True, True)]
)
def test_from_where_on_it_is_a_case_and_what_high_risk_leads_to(
    weight: int, makes_case: bool, high: bool, policy: Any, holds: bool, blocks: bool
) -> None:
    found = assess([signal("bot", weight)], Policy(policy=policy))
    assert (found.makes_case, found.holding, found.blocking) == (makes_case, high and holds, high and blocks)


@pytest.mark.parametrize(
    ("magnitude", "expected"), [(1, 0), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3), (1_000_000, 19)]
)
def test_each_band_is_twice_as_wide_as_the_one_below(magnitude: int, expected: int) -> None:
    assert band(magnitude) == expected


@pytest.mark.parametrize(("dismissed", "score"), [(None, 40), (2, 40), (3, 0), (4, 0)])
def test_dismissed_evidence_counts_again_in_a_higher_band(dismissed: int | None, score: int) -> None:
    found = assess([signal("velocity", 40, magnitude=8, dismissed=dismissed)], DEFAULT_POLICY)
    assert found.risk_score == score
    assert bool(found.evidence) == bool(score)


@given(st.lists(SIGNALS, max_size=30), st.randoms())
def test_an_assessment_does_not_depend_on_the_order_and_grows_with_evidence(
    signals: list[Signal], random: Any
) -> None:
    signals = list({(item.check, item.evidence_key): item for item in signals}.values())
    shuffled = random.sample(signals, len(signals))
    found = assess(signals, DEFAULT_POLICY)
    assert found == assess(shuffled, DEFAULT_POLICY)
    assert found.risk_score >= assess(signals[1:], DEFAULT_POLICY).risk_score
    assert 0 <= found.risk_score <= 100


def test_a_case_shows_the_strongest_of_many_signals() -> None:
    many = [signal("self_referral", n % 100, key=str(n)) for n in range(200)]
    evidence = assess(many, DEFAULT_POLICY).evidence
    assert len(evidence) == EVIDENCE_SHOWN_PER_CHECK
    assert evidence[0]["weight"] == 99


@pytest.mark.parametrize("preset", PRESETS)
def test_in_no_preset_is_an_honest_household_held(preset: Any) -> None:
    policy = Policy(preset=preset)
    assert not assess([signal("duplicate_ip", 20)], policy).makes_case
    assert not assess([signal("duplicate_ip", 20), signal("self_referral", 30)], policy).holding


def test_a_preset_fills_what_is_left_out() -> None:
    policy, problem = read_policy(
        {"preset": "strict", "case_from": 40, "checks": {"velocity": {"weight": 10}}}
    )
    assert problem is None
    assert (policy.case_from, policy.high_from) == (40, 60)
    assert (policy.checks.velocity.threshold, policy.checks.velocity.weight) == (5, 10)
    assert policy.checks.duplicate_ip.threshold == 2


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ({"policy": "ban"}, "policy"),
        ({"preset": ["strict"]}, "preset"),
        ({"case_from": 0}, "case_from"),
        ({"case_from": "30"}, "case_from"),
        ({"case_from": 50, "high_from": 40}, "high_from must be at least case_from"),
        ({"checks": {"velocitee": {}}}, "checks.velocitee"),
        ({"checks": {"velocity": {"weight": 101}}}, "checks.velocity.weight"),
        ({"checks": []}, "checks"),
        ({"ip_allowlist": ["192.0.2.1/24"]}, "ip_allowlist.0"),
        ({"ip_allowlist": ["fe80::1%eth0"]}, "ip_allowlist.0"),
        ({"ip_allowlist": [7]}, "ip_allowlist.0"),
    ],
)
def test_an_invalid_policy_names_what_is_wrong_and_falls_back(stored: dict[str, Any], named: str) -> None:
    policy, problem = read_policy(stored)
    assert policy == DEFAULT_POLICY
    assert problem is not None
    assert named in problem
