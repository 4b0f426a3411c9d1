"""A seed decides all that is published and broken in a chaos run."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

from campaign_jobs import catalog
from local.chaos.faults import TITLES
from local.chaos.plan import Plan, make_plan

STARTED_AT = datetime(2026, 6, 1, tzinfo=UTC)


def plan(seed: int = 7, events: int = 600) -> Plan:
    return make_plan(events=events, seed=seed, started_at=STARTED_AT)


def test_the_same_seed_plans_the_same_and_another_one_does_not() -> None:
    assert plan() == plan()
    assert plan().events.keys() != plan(seed=8).events.keys()


def test_a_later_start_changes_nothing_but_the_times() -> None:
    later = make_plan(events=600, seed=7, started_at=datetime(2026, 7, 1, tzinfo=UTC))
    for one, other in zip(plan().events.values(), later.events.values(), strict=True):
        assert replace(one, value=None) == replace(other, value=None)
    assert [step.faults for step in plan().steps] == [step.faults for step in later.steps]


def test_each_kind_of_fault_happens_and_every_event_is_published_some_of_them_twice() -> None:
    for seed in range(20):
        planned = plan(seed)
        assert {fault.kind for step in planned.steps for fault in step.faults} == set(TITLES)
        published = Counter(record.name for step in planned.steps for record in step.records)
        assert published.keys() == planned.events.keys()
        assert max(published.values()) > 1


def test_the_processes_of_every_function_are_killed_but_of_one_that_nobody_calls() -> None:
    job_types = (*catalog.EVENT_JOB_TYPES, *catalog.SCHEDULED_JOB_TYPES, *catalog.QUEUE_JOB_TYPES)
    chosen = {fault.function for seed in range(20) for step in plan(seed).steps for fault in step.faults}
    assert chosen - {""} == {job_type.name for job_type in job_types}


def test_one_in_a_hundred_is_poison() -> None:
    kinds = Counter(event.kind for event in plan(events=20_000).events.values())
    assert 150 <= kinds["poison"] <= 250
