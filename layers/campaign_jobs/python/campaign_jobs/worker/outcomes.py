"""What became of one event: a value that a job returns and the pipeline settles."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Done:
    """The job's effect is in the database."""


@dataclass(frozen=True)
class Skipped:
    """Nothing had to be done, for a reason that a person may ask for."""

    reason: str


@dataclass(frozen=True)
class Retry:
    """Failed, perhaps only for now: try again after `after` (None for the usual backoff). Spends an attempt."""

    reason: str
    after: timedelta | None = None


@dataclass(frozen=True)
class Later:
    """Not its time yet: hand it on and come back after `after`. Spends no attempt."""

    reason: str
    after: timedelta


@dataclass(frozen=True)
class Rejected:
    """Will never succeed as it is: a dead letter at once."""

    reason: str


Outcome = Done | Skipped | Retry | Later | Rejected
