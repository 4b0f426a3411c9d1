"""What a command prints: its result on standard output, as tables or JSON; all else on standard error."""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, Protocol
from uuid import UUID

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from campaign_jobs_cli.errors import Declined

Row = Mapping[str, Any]


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


@dataclass
class Output:
    """Where a command's words go. Results only ever go to standard output, so that they can be piped."""

    format: Format = Format.TABLE
    results: Console = field(default_factory=Console)
    notes: Console = field(default_factory=lambda: Console(stderr=True))

    @property
    def beforehand(self) -> "Output":
        """Where a command shows what it would change: with JSON on standard error, whose result comes afterwards."""
        return self if self.format is Format.TABLE else Output(results=self.notes, notes=self.notes)

    def rows(self, rows: Iterable[Row], *, columns: Sequence[str], title: str | None = None) -> None:
        """A table, or a JSON list of objects with all that each row has. `columns` are keys of the rows."""
        found = list(rows)
        if self.format is Format.JSON:
            self._json(found)
            return
        if not found:
            self.note(f"{title}: nothing" if title else "Nothing found.")
            return
        ids = sum(any(_is_uuid(row.get(column)) for row in found) for column in columns)
        others = len(columns) - ids
        has_room = ids * _UUID_WIDTH + others * _LEAST_WIDTH <= self.results.width
        self.results.print(table_of(found, columns=columns, title=title, ids_whole=has_room))

    def record(self, record: Row, *, title: str | None = None) -> None:
        """One thing with its properties, or a JSON object. Lists of mappings become tables below it."""
        if self.format is Format.JSON:
            self._json(record)
            return
        lists = {name: value for name, value in record.items() if _is_table(value)}
        table = Table(title=_title(title), title_justify="left", box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in record.items():
            if name not in lists:
                table.add_row(_as_text(name.replace("_", " ")), shown(value))
        self.results.print(table)
        for name, rows in lists.items():
            self.results.print()
            self.rows(rows, columns=list(rows[0]), title=name.replace("_", " "))

    def line(self, record: Row, text: Text | str) -> None:
        """One of a stream that has no end: a line of text, or one of JSON."""
        if self.format is Format.JSON:
            sys.stdout.write(json.dumps(record, default=_plain) + "\n")
            sys.stdout.flush()
        else:
            self.results.print(_as_text(text), soft_wrap=True)

    def note(self, text: Text | str) -> None:
        """What is being done, and where to look: for people, so never part of the result."""
        self.notes.print(_as_text(text), soft_wrap=True, highlight=False)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Go on only if it is wanted. Raises Declined."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise Declined(f"{question} Nobody can be asked here: add --yes to do it.")
        try:
            wanted = Confirm.ask(_as_text(question), console=self.notes, default=False)
        except EOFError:
            # Ctrl-D, or a terminal that is gone.
            wanted = False
        if not wanted:
            raise Declined("Nothing was changed.")

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator["Advance"]:
        """A bar on standard error, for whatever may take longer than a second; without a terminal, one line."""
        if not self.notes.is_terminal:
            self.note(f"{what} ...")
            yield _no_bar
            return
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.notes,
            transient=True,
        ) as progress:
            task = progress.add_task(visible(what), total=total)

            def advance(steps: float = 1, total: int | None = None) -> None:
                progress.update(task, advance=steps, total=total)

            yield advance

    def _json(self, value: object) -> None:
        text = json.dumps(value, default=_plain, indent=2, ensure_ascii=False)
        # JSON writes out only the oldest of them itself.
        sys.stdout.write(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


_UUID_WIDTH: Final = 36 + 1
_LEAST_WIDTH: Final = 8 + 1
"""Of a column whose text may be folded; each with the gap behind it."""


def table_of(
    rows: Sequence[Row], *, columns: Sequence[str], title: str | None = None, ids_whole: bool = False
) -> Table:
    """Rows as a table; `columns` are keys of the rows. Ids that stay whole can be copied, and need the room."""
    table = Table(title=_title(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        number = all(isinstance(row.get(column), int | float | Decimal | None) for row in rows)
        table.add_column(
            _as_text(column.replace("_", " ")),
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=ids_whole and any(_is_uuid(row.get(column)) for row in rows),
        )
    for row in rows:
        table.add_row(*(shown(row.get(column)) for column in columns))
    return table


def _no_bar(_steps: float = 1, _total: int | None = None) -> None:
    """Without a terminal, nothing moves."""


class Advance(Protocol):
    """What `Output.progress` gives: call it with the steps done, and a total where one becomes known."""

    def __call__(self, steps: float = 1, total: int | None = None, /) -> None: ...


def shown(value: object) -> Text:
    """A value as a person reads it. Never markup, because it may be anybody's text."""
    match value:
        case None:
            return Text("–", style="dim")
        case bool():
            return Text("yes" if value else "no")
        case datetime():
            return Text(value.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
        case timedelta():
            return Text(duration(value.total_seconds()))
        case float():
            return Text(f"{value:,.1f}")
        case list() if all(isinstance(each, str) for each in value):
            return Text(visible(", ".join(value)))
        case dict() | list() | tuple():
            return Text(visible(json.dumps(value, default=_plain, ensure_ascii=False)))
        case Text():
            return value
    return Text(visible(str(value)))


# What moves a terminal's cursor, starts one of its commands, or changes the order in which a line is read.
_CONTROL: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """A text with its control characters written out, as \\x1b; new lines stay. It may be anybody's text."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _as_text(text: Text | str) -> Text:
    return text if isinstance(text, Text) else Text(visible(text))


def _title(title: str | None) -> Text | None:
    return None if title is None else Text(visible(title), style="table.title")


def duration(seconds: float) -> str:
    """Such as 5 s, 3 min, 2.5 h or 3 d."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def _is_uuid(value: object) -> bool:
    return isinstance(value, UUID) or (
        isinstance(value, str)
        and re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value) is not None
    )


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _plain(value: object) -> object:
    match value:
        case datetime() | date():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case UUID() | Text() | StrEnum():
            return str(value)
        case Decimal():
            return float(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
