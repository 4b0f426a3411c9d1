"""What the fraud job decides, as plain functions on plain data: policies, bands, risk scores, holds and blocks."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

Check = Literal["self_referral", "velocity", "fake_email", "bot", "duplicate_ip", "duplicate_device"]

MAX_SCORE: Final = 100
EVIDENCE_SHOWN_PER_CHECK: Final = 20
"""A case shows the strongest of each check's signals; a farm of thousands would make it unreadable."""

Score = Annotated[int, Field(strict=True, ge=0, le=MAX_SCORE)]
CaseScore = Annotated[int, Field(strict=True, ge=1, le=MAX_SCORE)]
Threshold = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


def _network(value: Any) -> Any:
    # PostgreSQL's cidr has no scope id, and pydantic would take a number for an address.
    if not isinstance(value, str) or "%" in value:
        raise ValueError("must be an address or a CIDR such as 192.0.2.0/24")
    return value


Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]


class _Model(BaseModel):
    # A misspelled name must not pass for a rule that is in force.
    model_config = ConfigDict(frozen=True, extra="forbid")


class SelfReferralCheck(_Model):
    """Referrer and referred are one person: what they share adds up."""

    enabled: bool = True
    email_weight: Score = 100
    device_weight: Score = 60
    ip_weight: Score = 30


class VelocityCheck(_Model):
    """More than `threshold` referrals by one referrer within any hour."""

    enabled: bool = True
    threshold: Threshold = 10
    weight: Score = 40


class FakeEmailCheck(_Model):
    """A throw-away mailbox, or the mailbox of an earlier account of the campaign."""

    enabled: bool = True
    disposable_weight: Score = 35
    alias_weight: Score = 100


class BotCheck(_Model):
    """The user agent is a program's."""

    enabled: bool = True
    weight: Score = 40


class DuplicateIpCheck(_Model):
    """More than `threshold` users of the campaign on one address."""

    enabled: bool = True
    threshold: Threshold = 3
    weight: Score = 20


class DuplicateDeviceCheck(_Model):
    """More than `threshold` users of the campaign on one device."""

    enabled: bool = True
    threshold: Threshold = 2
    weight: Score = 40


class Checks(_Model):
    self_referral: SelfReferralCheck = SelfReferralCheck()
    velocity: VelocityCheck = VelocityCheck()
    fake_email: FakeEmailCheck = FakeEmailCheck()
    bot: BotCheck = BotCheck()
    duplicate_ip: DuplicateIpCheck = DuplicateIpCheck()
    duplicate_device: DuplicateDeviceCheck = DuplicateDeviceCheck()


# In every preset, sharing an address alone makes no case, and a household that refers each other is not held.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "strict": {
        "case_from": 25,
        "high_from": 60,
        "checks": {
            "velocity": {"threshold": 5},
            "duplicate_ip": {"threshold": 2},
            "duplicate_device": {"threshold": 1},
        },
    },
    "normal": {},
    "lenient": {
        "case_from": 50,
        "high_from": 100,
        "checks": {
            "velocity": {"threshold": 20},
            "duplicate_ip": {"threshold": 10},
            "duplicate_device": {"threshold": 4},
        },
    },
}


class Policy(_Model):
    """A campaign's `fraud_policy`: what is checked, from where on it counts, and what follows."""

    policy: Literal["flag", "hold", "block"] = "hold"
    """At high risk: only open a case, withhold credit and rewards too, or block the user as well."""
    preset: Literal["strict", "normal", "lenient"] = "normal"
    """Where whatever is left out comes from."""
    case_from: CaseScore = 30
    high_from: CaseScore = 80
    checks: Checks = Checks()
    ip_allowlist: Annotated[tuple[Network, ...], Field(max_length=1_000)] = ()
    """Addresses that many people share (an office, a campus); sharing one says nothing."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, value: Any) -> Any:
        name = value.get("preset", "normal") if isinstance(value, dict) else None
        return _merged(PRESETS[name], value) if isinstance(name, str) and name in PRESETS else value

    @model_validator(mode="after")
    def _high_is_at_least_a_case(self) -> Self:
        if self.high_from < self.case_from:
            raise ValueError("high_from must be at least case_from")
        return self


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**base, **over}
    for name in base.keys() & over.keys():
        if isinstance(base[name], Mapping) and isinstance(over[name], Mapping):
            merged[name] = _merged(base[name], over[name])
    return merged


DEFAULT_POLICY: Final = Policy()


def read_policy(stored: Mapping[str, Any]) -> tuple[Policy, str | None]:
    """The policy as a campaign stores it, or the default one and what is wrong with the stored one."""
    if not stored:
        return DEFAULT_POLICY, None
    try:
        return Policy.model_validate(dict(stored)), None
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)[:5]
        lines = [
            f"{'.'.join(map(str, problem['loc'])) or 'fraud_policy'}: {problem['msg']}"
            for problem in problems
        ]
        return DEFAULT_POLICY, "; ".join(lines)


def read_stored_policy(stored: str) -> tuple[Policy, str | None]:
    """As read_policy, of the JSON text that the database holds; what is beyond Python's limits is wrong too."""
    try:
        return read_policy(json.loads(stored))
    except RecursionError:
        return DEFAULT_POLICY, "fraud_policy: it is nested too deeply"
    except ValueError:
        # The text is jsonb's own, so all that is left is a number of more digits than Python converts.
        return DEFAULT_POLICY, "fraud_policy: it contains a number with too many digits"


@dataclass(frozen=True)
class Signal:
    """What a check found about one user."""

    check: str
    evidence_key: str
    weight: int
    magnitude: int
    evidence: Mapping[str, Any]
    dismissed_band: int | None = None
    """The band in which a person dismissed this evidence."""

    @property
    def counts(self) -> bool:
        return self.dismissed_band is None or self.dismissed_band < band(self.magnitude)

    def as_evidence(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "key": self.evidence_key,
            "band": band(self.magnitude),
            "weight": self.weight,
            "magnitude": self.magnitude,
            "details": dict(self.evidence),
        }


@dataclass(frozen=True)
class Assessment:
    """What a user's signals amount to under the campaign's policy."""

    risk_score: int
    makes_case: bool
    holding: bool
    blocking: bool
    evidence: list[dict[str, Any]]


def band(magnitude: int) -> int:
    """The band that a magnitude (at least 1) falls in: each is twice as wide as the one below.

    Evidence that was dismissed at five users on an address is new at eight, not at six.
    """
    return magnitude.bit_length() - 1


def assess(signals: Iterable[Signal], policy: Policy) -> Assessment:
    """Combine a user's signals.

    Within a check the strongest signal counts, because ten users on an address are one fact told ten times; different
    checks add up, to at most 100. Evidence that was dismissed in the same or a higher band does not count.
    """
    strongest: dict[str, int] = {}
    by_check: dict[str, list[Signal]] = {}
    for signal in signals:
        if signal.counts:
            strongest[signal.check] = max(signal.weight, strongest.get(signal.check, 0))
            by_check.setdefault(signal.check, []).append(signal)
    risk_score = min(MAX_SCORE, sum(strongest.values()))
    high = risk_score >= policy.high_from
    return Assessment(
        risk_score=risk_score,
        makes_case=risk_score >= policy.case_from,
        holding=high and policy.policy in ("hold", "block"),
        blocking=high and policy.policy == "block",
        evidence=[
            signal.as_evidence()
            for check in sorted(by_check)
            for signal in sorted(
                by_check[check],
                key=lambda signal: (
                    -signal.weight,
                    -signal.magnitude,
                    signal.evidence_key,
                ),
            )[:EVIDENCE_SHOWN_PER_CHECK]
        ],
    )
