"""Everything that a run leaves behind, so that two runs can be compared: tables, queues, mails, webhooks, records."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from campaign_jobs.database.connection import Connection

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(\+00:00|\+00|Z)?")
_SES_MESSAGE_ID: Final = re.compile(r"\b[0-9a-f]{32}\b")

# What says how often something was tried, not what came of it, or where another run's receiver listened.
IGNORED: Final = {
    ("leases", "*"): "who held it last",
    ("send_tokens", "*"): "what is left of the rate",
    ("webhook_attempts", "duration_ms"): "a measurement",
    ("webhook_endpoints", "url"): "each worker's receiver has a port of its own",
    (
        "position_runs",
        "runs",
    ): "an event that comes again is one more request, and a run that finds nothing to change",
    ("position_runs", "woken_at"): "when relay looked",
    ("heartbeats", "topic"): "each worker has one of its own",
}

_COLUMNS: Final = """
SELECT relname, attname, atttypid = 'timestamptz'::regtype, attidentity <> ''
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relnamespace = 'campaign_jobs'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
ORDER BY relname, attnum
"""


@dataclass(frozen=True)
class Dump:
    """All rows, each as JSON, with what no two runs share taken out but for the UUIDs."""

    rows: Mapping[str, Sequence[str]]

    @property
    def uuids(self) -> set[str]:
        return {found for rows in self.rows.values() for row in rows for found in _UUID.findall(row)}

    def comparable(self, known: set[str], ignored: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
        """The rows with every UUID that is not `known` replaced, sorted, and without what is ignored."""
        leave_out = {*IGNORED, *ignored}
        return {
            table: sorted(comparable(_without(table, row, leave_out), known) for row in rows)
            for table, rows in self.rows.items()
            if (table, "*") not in leave_out
        }


def dump(connection: Connection) -> Dump:
    tables: dict[str, list[tuple[str, bool, bool]]] = {}
    for table, *column in connection.execute(_COLUMNS).fetchall():
        tables.setdefault(table, []).append((column[0], column[1], column[2]))
    query = " UNION ALL ".join(
        f"SELECT '{table}', to_jsonb(row) FROM campaign_jobs.{table} AS row" for table in tables
    )
    rows: dict[str, list[str]] = {table: [] for table in tables}
    for table, row in connection.execute(query.encode()).fetchall():
        for name, is_moment, is_identity in tables[table]:
            if is_identity:
                del row[name]
            elif is_moment and row[name] is not None:
                row[name] = "a moment"
        rows[table].append(json.dumps(row, sort_keys=True))
    return Dump(rows)


def comparable(text: str, known: set[str]) -> str:
    text = _UUID.sub(lambda found: found[0] if found[0] in known else "a new UUID", text)
    return _SES_MESSAGE_ID.sub("an id", _MOMENT.sub("a moment", text))


def _without(table: str, row: str, leave_out: set[tuple[str, str]]) -> str:
    values = json.loads(row)
    kept = {name: value for name, value in values.items() if (table, name) not in leave_out}
    return json.dumps(kept, sort_keys=True)


def difference(expected: Mapping[str, Sequence[Any]], found: Mapping[str, Sequence[Any]]) -> str:
    """What is missing and what is too much, a line each; nothing where the two are equal."""
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        one, other = (Counter(map(str, state.get(name, ()))) for state in (expected, found))
        lines += [f"    {name}: missing {row}" for row in sorted((one - other).elements())]
        lines += [f"    {name}: found {row}" for row in sorted((other - one).elements())]
    return "\n".join(lines)


def coordinates(body: Mapping[str, Any]) -> str:
    """Which record a message is about; of one that nobody can read, the text itself."""
    return json.dumps([body.get(name) for name in ("topic", "partition", "offset", "unreadable_body")])


def dead_letters(queues: Mapping[str, Sequence[str]]) -> Counter[tuple[str, str, str]]:
    """How many dead letters there are by queue, record and reason."""
    return Counter(
        (queue, coordinates(body), body["dead_letter"]["reason"])
        for queue, bodies in queues.items()
        for body in map(json.loads, bodies)
        if "dead_letter" in body
    )


def waiting(queues: Mapping[str, Sequence[str]]) -> set[tuple[str, str]]:
    """What waits in retry queues, by queue and record."""
    return {
        (queue, coordinates(body))
        for queue, bodies in queues.items()
        for body in map(json.loads, bodies)
        if "dead_letter" not in body
    }
