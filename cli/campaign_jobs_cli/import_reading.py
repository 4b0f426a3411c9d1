"""People in a CSV file, line by line: what each says, and what is wrong with it."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from campaign_jobs.events import INT4_MAX
from campaign_jobs_cli.errors import WrongInput

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Problem:
    """What is wrong in one line, for whoever mends the file."""

    line: int
    column: str
    problem: str


@dataclass
class Person:
    """One line. What is wrong stays out of `values`."""

    line: int
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def _text(longest: int) -> Callable[[str], str]:
    def read(value: str) -> str:
        if len(value) > longest:
            raise ValueError(f"it has {len(value)} characters; allowed are at most {longest}")
        if _CONTROL.search(value):
            raise ValueError("it contains a control character")
        return value

    return read


def _email(value: str) -> str:
    if not 3 <= len(value) <= 254 or not re.fullmatch(
        r"[^\s@<>\x00-\x1f\x7f-\x9f]+@[^\s@<>\x00-\x1f\x7f-\x9f]+", value
    ):
        raise ValueError("it is not an email address")
    return value


def _moment(value: str) -> datetime:
    try:
        found = datetime.fromisoformat(value)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            "it is not a time such as 2026-03-01T12:00:00Z; without an offset it is UTC"
        ) from None
    if not _EARLIEST <= found <= datetime.now(UTC):
        raise ValueError("it lies in the future, or before 1970")
    return found


def _position(value: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", value) or not 1 <= int(value) <= INT4_MAX:
        raise ValueError(f"it is not a whole number from 1 to {INT4_MAX:,}")
    return int(value)


def _ip(value: str) -> str:
    try:
        found = ip_address(value)
    except ValueError:
        raise ValueError("it is not a single IP address") from None
    if isinstance(found, IPv6Address) and found.scope_id is not None:
        raise ValueError("it is an IP address with a zone, which means nothing elsewhere")
    return str(found)


COLUMNS: Final[Mapping[str, Callable[[str], Any]]] = {
    "email": _email,
    "first_name": _text(100),
    "referral_code": _text(64),
    "referred_by": _text(254),
    "verified_at": _moment,
    "created_at": _moment,
    "original_position": _position,
    "verification_token": _text(200),
    "marketing_consent_at": _moment,
    "ip": _ip,
    "user_agent": _text(1_000),
    "device_fingerprint": _text(200),
}
"""What a file may hold, with the bounds of the columns of waitlist_users; only email must be there."""


@dataclass
class PeopleFile:
    """A CSV file with a header: UTF-8, as RFC 4180 has it."""

    path: Path
    delimiter: str = ","
    names: Mapping[str, str] = field(default_factory=dict)
    """Headers of the file by our columns, where they differ."""
    ignored: list[str] = field(default_factory=list)
    """Columns that mean nothing to us; known after the header was read."""
    unfinished: Problem | None = None
    """Why reading ended before the file did."""

    def read(self) -> Iterator[Person]:
        """Each line's person. Raises WrongInput where the file cannot be read, or its header is wrong."""
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.reader(stream, delimiter=self.delimiter, strict=True)
                try:
                    header = next(reader, [])
                except csv.Error as error:
                    raise WrongInput(f"the header of {self.path} is no CSV ({error})") from error
                columns = self._columns(header)
                yield from self._people(reader, columns)
        except OSError as error:
            raise WrongInput(f"{self.path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise WrongInput(
                f"{self.path} is not UTF-8 (the byte {error.object[error.start]:#04x}); save it as UTF-8"
            ) from error

    def _people(self, reader: Any, columns: list[str | None]) -> Iterator[Person]:
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                self.unfinished = Problem(line, "", f"it is no CSV ({error}); nothing behind it was read")
                return
            if cells is None:
                return
            if any(cell.strip() for cell in cells):
                yield _person(line, cells, columns)

    def _columns(self, header: list[str]) -> list[str | None]:
        theirs = {theirs.strip().lower(): ours for ours, theirs in self.names.items()}
        columns: list[str | None] = []
        for cell in header:
            name = cell.strip().lower()
            column = theirs.get(name, name if name in COLUMNS and name not in self.names else None)
            if column is None:
                self.ignored.append(cell.strip())
            elif column in columns:
                raise WrongInput(f"{self.path} has two columns for {column}")
            columns.append(column)
        for ours, name in self.names.items():
            if ours not in columns:
                raise WrongInput(f"{self.path} has no column {name!r}, which --column names for {ours}")
        if "email" not in columns:
            raise WrongInput(
                f"the header of {self.path} has no column email but {', '.join(map(repr, header)) or 'nothing'}; "
                "name it with --column email=NAME, or the separator with --delimiter"
            )
        return columns


def _person(line: int, cells: list[str], columns: list[str | None]) -> Person:
    person = Person(line)
    if len(cells) != len(columns):
        person.problems.append(
            Problem(line, "", f"it has {len(cells)} cells, and the header has {len(columns)}")
        )
        return person
    for column, cell in zip(columns, cells, strict=True):
        value = cell.strip()
        if column is None or not value:
            continue
        try:
            person.values[column] = COLUMNS[column](value)
        except ValueError as error:
            person.problems.append(Problem(line, column, str(error)))
    if "email" not in person.values and not any(problem.column == "email" for problem in person.problems):
        person.problems.append(Problem(line, "email", "it is missing"))
    return person
