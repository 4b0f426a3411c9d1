"""A script of what becomes of mails: SES throttles, pauses, rejects or answers late, or the mail bounces or annoys."""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from campaign_jobs.errors import CampaignJobsError


class ScriptError(CampaignJobsError):
    """A script for SES is wrong; the message says where and what is allowed."""


class Answer(StrEnum):
    """What becomes of a mail other than being accepted and delivered.

    The error codes are those of SES's API reference (SendEmail).
    """

    THROTTLE = "throttle"
    """HTTP 429, TooManyRequestsException."""
    PAUSED = "paused"
    """SendingPausedException: SES has stopped the whole account."""
    REJECT = "reject"
    """MessageRejected."""
    TIMEOUT = "timeout"
    """The mail is accepted, but the answer comes only after `seconds`, when the client may have given up."""
    BOUNCE = "bounce"
    """The mail is accepted and bounces for good, as to bounce@simulator.amazonses.com."""
    COMPLAINT = "complaint"
    """The mail is delivered and its reader complains, as with complaint@simulator.amazonses.com."""


@dataclass(frozen=True)
class ScriptLine:
    """What happens to mails for a matching recipient; the first line that matches and is not used up decides."""

    match: str
    """A regular expression, searched for in each recipient's address."""
    answer: Answer
    times: int | None = None
    """How often; None is always."""
    seconds: float = 60
    """How late the answer of `timeout` comes."""


def read_script(text: str) -> list[ScriptLine]:
    """Parse a JSON list of {match, answer, times?, seconds?}. Raises ScriptError naming the first wrong line."""
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ScriptError(f"the script is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ScriptError("the script is not a JSON list")
    return [_read_line(number, entry) for number, entry in enumerate(entries, start=1)]


def write_script(lines: Sequence[ScriptLine]) -> str:
    return json.dumps([asdict(line) for line in lines])


def _read_line(number: int, entry: object) -> ScriptLine:
    if not isinstance(entry, dict):
        raise ScriptError(f"line {number} is not an object")
    if unknown := entry.keys() - {"match", "answer", "times", "seconds"}:
        raise ScriptError(
            f"line {number}: unknown {', '.join(sorted(unknown))}; known are match, answer, times, seconds"
        )
    match, answer, times, seconds = (entry.get(key) for key in ("match", "answer", "times", "seconds"))
    if not isinstance(match, str) or not _is_regular_expression(match):
        raise ScriptError(f"line {number}: match {match!r} is not a regular expression")
    if answer not in list(Answer):
        raise ScriptError(f"line {number}: answer {answer!r} is not one of {', '.join(Answer)}")
    if times is not None and (type(times) is not int or times < 1):
        raise ScriptError(f"line {number}: times {times!r} is not a whole number of at least 1")
    if seconds is not None and (type(seconds) not in (int, float) or seconds < 0):
        raise ScriptError(f"line {number}: seconds {seconds!r} is not a number of at least 0")
    return ScriptLine(match, Answer(answer), times, ScriptLine.seconds if seconds is None else seconds)


def _is_regular_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


class Script:
    """The lines in force, with what is left of each. Safe to use from several threads."""

    def __init__(self, lines: Sequence[ScriptLine]) -> None:
        self._lock = threading.Lock()
        self.replace(lines)

    def replace(self, lines: Sequence[ScriptLine]) -> None:
        with self._lock:
            self._lines = list(lines)
            self._left = [line.times for line in lines]

    def next_line(self, recipients: Sequence[str]) -> ScriptLine | None:
        """The line that decides about a mail to `recipients`, spent by one, or None where SES answers as usual."""
        with self._lock:
            for number, line in enumerate(self._lines):
                left = self._left[number]
                if left == 0 or not any(re.search(line.match, recipient) for recipient in recipients):
                    continue
                if left is not None:
                    self._left[number] = left - 1
                return line
        return None
