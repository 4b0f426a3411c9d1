"""What became of each event, from the lines that the functions log."""

import json
import threading
from collections import Counter
from dataclasses import dataclass

FINAL = ("skipped", "rejected", "done")
"""What says more of an event comes later: of one that came twice, one does the work or is given up, one is skipped."""


@dataclass(frozen=True)
class Final:
    outcome: str
    reason: str | None
    event_type: str | None


class Outcomes:
    """Collects the final outcome of each event; a bad record, which has no id, goes by its coordinates."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._final: dict[str, Final] = {}
        self._tries: Counter[str] = Counter()

    def on_log_line(self, function_name: str, line: str) -> None:  # noqa: ARG002 - LocalSystem gives both
        """Called from the functions' log readers."""
        if "event settled" not in line:
            return
        try:
            entry = json.loads(line)
        except ValueError:
            return
        if entry.get("message") != "event settled":
            return
        key = entry.get("event_id") or coordinates_key(entry["topic"], entry["partition"], entry["offset"])
        final = Final(entry["outcome"], entry.get("reason"), entry.get("event_type"))
        with self._lock:
            if final.outcome not in FINAL:
                self._tries[final.outcome] += 1
                return
            before = self._final.get(key)
            if before is None or FINAL.index(final.outcome) >= FINAL.index(before.outcome):
                self._final[key] = final

    def of(self, key: str) -> Final | None:
        with self._lock:
            return self._final.get(key)

    def by_type(self) -> dict[str, Counter[str]]:
        """Events by type and outcome."""
        with self._lock:
            counted: dict[str, Counter[str]] = {}
            for final in self._final.values():
                counted.setdefault(final.event_type or "(no type of ours)", Counter())[final.outcome] += 1
            return counted

    def reasons(self) -> Counter[tuple[str, str]]:
        """Reasons of skips, by event type."""
        with self._lock:
            return Counter(
                (final.event_type or "", final.reason or "")
                for final in self._final.values()
                if final.outcome == "skipped"
            )

    @property
    def tries(self) -> Counter[str]:
        """How often an event was put off: `retry` after a failure, `later` to wait for something."""
        with self._lock:
            return Counter(self._tries)


def coordinates_key(topic: str, partition: int, offset: int) -> str:
    return f"{topic}/{partition}/{offset}"
