"""Whether what the launch left behind is what the script put in."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from campaign_jobs.reward.webhooks.signing import webhook_id
from local.demo import services
from local.demo.cast import MAIN_CAMPAIGN, Cast
from local.demo.expectations import AFTER_FRAUD, AFTER_SIGNUPS, AFTER_VERIFYING, AT_THE_END, Expectations
from local.demo.findings import Findings, reward_state
from local.demo.launch import Launch
from local.demo.outcomes import Outcomes, coordinates_key
from local.demo.publishing import Publisher
from local.demo.receiver import WebhookReceiver

SHOWN_OF_A_DIFFERENCE = 5


@dataclass(frozen=True)
class Check:
    name: str
    expected: Any
    found: Any

    @property
    def holds(self) -> bool:
        return bool(self.expected == self.found)

    def difference(self) -> str:
        """What was expected and what was found, where they differ."""
        expected, found = self.expected, self.found
        if isinstance(expected, dict) and isinstance(found, dict):
            keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
            lines = [f"{key}: expected {expected.get(key)}, found {found.get(key)}" for key in keys]
        elif isinstance(expected, set) and isinstance(found, set):
            lines = [f"missing: {entry}" for entry in expected - found]
            lines += [f"not expected: {entry}" for entry in found - expected]
        else:
            lines = [f"expected {expected}, found {found}"]
        more = len(lines) - SHOWN_OF_A_DIFFERENCE
        return "; ".join([*islice(lines, SHOWN_OF_A_DIFFERENCE), *([f"and {more} more"] if more > 0 else [])])


def check(
    launch: Launch, publisher: Publisher, receiver: WebhookReceiver, outcomes: Outcomes, findings: Findings
) -> list[Check]:
    """Every check of the launch but those of mails."""
    expectations = launch.expectations
    return [
        *_events(publisher, outcomes, findings),
        *_positions(expectations, launch, findings),
        *_rewards(expectations, receiver, findings),
        *_fraud(expectations, launch, findings),
        *_analytics(expectations.cast, findings),
        *_dead_letters(launch, publisher, findings),
        Check("no function failed", {}, findings.failed_invocations),
        Check("nothing is left under way", {}, findings.unfinished),
    ]


def _events(publisher: Publisher, outcomes: Outcomes, findings: Findings) -> Iterator[Check]:
    def found(ids: Iterable[str]) -> tuple[str, ...]:
        finals = [outcomes.of(id_) for id_ in ids]
        return tuple(sorted("none" if final is None else final.outcome for final in finals))

    yield Check(
        "every published event came to the outcome that the script says",
        {asked.about: asked.outcomes for asked in publisher.asked},
        {asked.about: found(asked.ids) for asked in publisher.asked},
    )
    follow_ups = {row["event_id"] for row in findings.outbox}
    yield Check(
        "every follow-up event was published and came to an outcome",
        follow_ups,
        {
            row["event_id"]
            for row in findings.outbox
            if row["published_at"] is not None and outcomes.of(row["event_id"]) is not None
        },
    )


def _positions(expectations: Expectations, launch: Launch, findings: Findings) -> Iterator[Check]:
    for campaign in expectations.cast.campaigns.values():
        yield Check(
            f"{campaign.name}: positions are those of the reference",
            expectations.positions(campaign.key, AT_THE_END),
            findings.positions[campaign.key],
        )
        positions = sorted(findings.positions[campaign.key].values())
        yield Check(f"{campaign.name}: positions are 1 to n", list(range(1, len(positions) + 1)), positions)
    for stage, moment in (
        (AFTER_SIGNUPS, "sign_up"),
        (AFTER_VERIFYING, "verify"),
        (AFTER_FRAUD, "look_for_fraud"),
    ):
        yield Check(
            f"the leaderboard {stage} is that of the reference",
            expectations.positions(MAIN_CAMPAIGN, stage),
            {standing.person: standing.position for standing in launch.boards.get(moment, [])},
        )


def _rewards(expectations: Expectations, receiver: WebhookReceiver, findings: Findings) -> Iterator[Check]:
    cast = expectations.cast
    wanted = {
        services.user_reward_id(cast, reward): reward.waits
        if reward.waits is not None and reward.status == "earned"
        else reward.status
        for reward in expectations.user_rewards
    }
    yield Check(
        "every reward is delivered, held, parked or revoked as it should be",
        wanted,
        {row["id"]: reward_state(row) for row in findings.user_rewards},
    )
    delivered: dict[str, set[str]] = {"working": set(), "flaky": set(), "gone": set()}
    for reward in expectations.user_rewards:
        endpoint = cast.rewards[reward.reward].endpoint
        if endpoint is not None and reward.status == "delivered":
            delivered[endpoint].add(webhook_id(services.user_reward_id(cast, reward)))
    for endpoint, ids in delivered.items():
        answered = Counter(
            r.webhook_id for r in receiver.received if r.endpoint == endpoint and r.status == 200
        )
        yield Check(
            f"the {endpoint} endpoint took each of its deliveries once", dict.fromkeys(ids, 1), dict(answered)
        )
    failed = Counter(r.webhook_id for r in receiver.received if r.status == 500)
    yield Check(
        "each delivery that failed was tried again", dict.fromkeys(delivered["flaky"], 1), dict(failed)
    )
    gone = [cast.names.uuid("endpoint", r.endpoint) for r in receiver.received if r.status == 410]
    yield Check(
        "the endpoint that answered 410 is disabled, and no other",
        set(gone),
        set(findings.disabled_endpoints),
    )
    yield Check(
        "every webhook is signed with its endpoint's secret",
        set(),
        {r.webhook_id for r in receiver.received if not r.is_signed},
    )


def _fraud(expectations: Expectations, launch: Launch, findings: Findings) -> Iterator[Check]:
    people = expectations.cast.people.values()
    decided = {"dismiss": "dismissed", "confirm": "confirmed", None: "open"}
    yield Check(
        "exactly the expected people have a fraud case, of the expected checks",
        {person.key: sorted(person.checks) for person in people if person.checks},
        {
            case["person"]: sorted({entry["check"] for entry in case["evidence"]})
            for case in findings.fraud_cases
        },
    )
    yield Check(
        "exactly the expected cases hold",
        {person.key for person in people if person.held},
        {case["person"] for case in findings.fraud_cases if case["holding"]},
    )
    yield Check(
        "cases are open, dismissed or confirmed as somebody decided",
        {person.key: decided[person.decision] for person in people if person.checks},
        {case["person"]: case["status"] for case in findings.fraud_cases},
    )
    yield Check(
        "no honest person has a case that holds",
        set(),
        {
            case["person"]
            for case in findings.fraud_cases
            if case["holding"] and not expectations.cast.people[case["person"]].held
        },
    )
    last = launch.fraud_reports[-1]
    yield Check(
        "a second fraud run finds nothing new", (0, 0), (last["cases_opened"], last["cases_retracted"])
    )


def _analytics(cast: Cast, findings: Findings) -> Iterator[Check]:
    counted: dict[tuple[str, datetime], Counter[str]] = {}
    for metric, moments in findings.happened.items():
        for campaign, moment in moments:
            local = moment.astimezone(ZoneInfo(cast.campaigns[campaign].timezone))
            bucket = local.replace(minute=0, second=0, microsecond=0).astimezone(UTC)
            counted.setdefault((campaign, bucket), Counter())[metric] += 1
    yield Check(
        "the hours' analytics equal a plain count",
        {key: dict(counts) for key, counts in counted.items()},
        {
            (row["campaign"], row["bucket"].astimezone(UTC)): {
                metric: row[metric] for metric in findings.happened if row[metric]
            }
            for row in findings.metrics
        },
    )
    people = cast.people.values()
    totals = {
        "new_signups": len(people),
        "email_verifications": sum(person.verifies for person in people),
        "referrals": sum(person.referred_by is not None for person in people),
    }
    yield Check(
        "the analytics count everybody of the script",
        totals,
        {metric: sum(row[metric] for row in findings.metrics) for metric in totals},
    )


def _dead_letters(launch: Launch, publisher: Publisher, findings: Findings) -> Iterator[Check]:
    by_coordinates: dict[str, list[tuple[str, str]]] = {}
    hopeless: Counter[str] = Counter()
    names = {launch.hopeless_id(event.name): event.name for event in launch.cast.hopeless_events}
    wrong_reasons: set[str] = set()
    by_name = {event.name: event for event in launch.cast.hopeless_events}
    for letter in findings.dead_letters:
        key = coordinates_key(letter.topic, letter.partition, letter.offset)
        if key in publisher.bad_records:
            by_coordinates.setdefault(key, []).append((letter.queue, letter.reason))
            continue
        name = names.get(_event_id(letter.value), "not of the script")
        hopeless[name] += 1
        event = by_name.get(name)
        if event is None or event.queue != letter.queue or event.reason not in letter.reason:
            wrong_reasons.add(f"{name}: {letter.queue}: {letter.reason}")
    yield Check(
        "each malformed record is in one dead-letter queue, once",
        {record.name: [record.queue] for record in publisher.bad_records.values()},
        {
            record.name: [queue for queue, _ in by_coordinates.get(key, [])]
            for key, record in publisher.bad_records.items()
        },
    )
    yield Check(
        "each of their reasons says what is wrong",
        set(),
        {
            f"{record.name}: {reason}"
            for key, record in publisher.bad_records.items()
            for _, reason in by_coordinates.get(key, [])
            if record.reason not in reason
        },
    )
    yield Check("each hopeless event is a dead letter with its reason", set(), wrong_reasons)
    yield Check("no other event is a dead letter", set(names.values()), set(hopeless))


def _event_id(value: str | None) -> str:
    try:
        return str(json.loads(value or "")["id"])
    except (ValueError, TypeError, KeyError):
        return ""
