"""The account that SES sends for: how fast it may send, whether it may at all, and what it has sent in each second."""

import json
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from campaign_jobs.errors import CampaignJobsError


class AccountError(CampaignJobsError):
    """A change of the account is wrong; the message says what is allowed."""


@dataclass(frozen=True)
class AccountSettings:
    max_send_rate: float = 500
    """Mails a second, as GetAccount tells it."""
    enforce_rate: bool = False
    """Whether sends above the rate are throttled; bursts of one second's rate pass."""
    sending_enabled: bool = True
    """Whether the account sends at all; without, each send is answered with SendingPausedException."""


@dataclass(frozen=True)
class Second:
    """What SES answered within one second of the clock, the wall's."""

    second: int
    accepted: int
    throttled: int


_KINDS: Final = {"max_send_rate": (int, float), "enforce_rate": (bool,), "sending_enabled": (bool,)}


def read_settings(text: str) -> AccountSettings:
    """Parse a JSON object of the settings, each optional. Raises AccountError naming the first wrong one."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise AccountError(f"the account is not JSON: {error}") from error
    if not isinstance(values, dict) or values.keys() - _KINDS.keys():
        raise AccountError(f"the account is not a JSON object of {', '.join(_KINDS)}")
    for name, value in values.items():
        if type(value) not in _KINDS[name] or (name == "max_send_rate" and value < 0):
            raise AccountError(f"{name} {value!r} is not a {_KINDS[name][-1].__name__} of at least 0")
    return AccountSettings(**values)


def write_settings(settings: AccountSettings) -> str:
    return json.dumps(asdict(settings))


class Account:
    """The account's settings and counts. Safe to use from several threads."""

    def __init__(self, settings: AccountSettings) -> None:
        self._lock = threading.Lock()
        self._accepted: Counter[int] = Counter()
        self._throttled: Counter[int] = Counter()
        self.replace(settings)

    def replace(self, settings: AccountSettings) -> None:
        with self._lock:
            self.settings = settings
            self._tokens = self._burst
            self._refilled_at = time.monotonic()

    @property
    def _burst(self) -> float:
        return max(1.0, self.settings.max_send_rate)

    def may_send(self) -> bool:
        """Whether the rate lets one more mail pass, which then counts as sent."""
        with self._lock:
            now = time.monotonic()
            elapsed, self._refilled_at = now - self._refilled_at, now
            self._tokens = min(self._burst, self._tokens + elapsed * self.settings.max_send_rate)
            passes = not self.settings.enforce_rate or self._tokens >= 1
            self._tokens = max(0.0, self._tokens - passes)
            if not passes:
                self._throttled[int(time.time())] += 1
            return passes

    def count_accepted(self) -> None:
        with self._lock:
            self._accepted[int(time.time())] += 1

    def answer_get_account(self) -> dict[str, Any]:
        """As the SES API v2 reference has it, GetAccount."""
        with self._lock:
            return {
                "DedicatedIpAutoWarmupEnabled": False,
                "EnforcementStatus": "HEALTHY" if self.settings.sending_enabled else "SHUTDOWN",
                "ProductionAccessEnabled": True,
                "SendingEnabled": self.settings.sending_enabled,
                "SendQuota": {
                    "Max24HourSend": 1_000_000.0,
                    "MaxSendRate": float(self.settings.max_send_rate),
                    "SentLast24Hours": float(self._accepted.total()),
                },
            }

    def seconds(self) -> list[Second]:
        """What was accepted and throttled in each second in which anything was."""
        with self._lock:
            return [
                Second(second, self._accepted[second], self._throttled[second])
                for second in sorted(self._accepted.keys() | self._throttled.keys())
            ]


def write_seconds(seconds: list[Second]) -> str:
    return json.dumps([[getattr(second, field.name) for field in fields(Second)] for second in seconds])


def read_seconds(text: str) -> list[Second]:
    return [Second(*values) for values in json.loads(text)]
