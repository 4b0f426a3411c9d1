"""The record that is published for one of the topic: the same bytes, or the same event under a new id."""

import hashlib
import json
from typing import Any
from uuid import UUID, uuid5

from campaign_jobs import catalog
from campaign_jobs.events import Event
from campaign_jobs_cli.records import Understood


class Issue:
    """What one replay publishes. Without `again` that is each record as it is."""

    def __init__(self, replay_id: UUID, *, again: bool) -> None:
        self._replay_id = replay_id
        self.again = again
        self._seen: set[bytes] = set()

    def is_repeated(self, event: Event) -> bool:
        """Whether this replay has met the event's id before: one record of it is enough."""
        digest = hashlib.blake2b(event.id.encode(), digest_size=16).digest()
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False

    def event(self, event: Event) -> Event:
        """The event as its job will see it."""
        return event.model_copy(update={"id": self._new_id(event)}) if self.again else event

    def value(self, each: Understood) -> bytes | None:
        """The record's value; None where a new id makes it too long."""
        if not self.again:
            return each.record.value
        assert each.event is not None
        value = _encoded({**(each.decoded or {}), "id": self._new_id(each.event)})
        return value if len(value) <= catalog.MAX_VALUE_BYTES else None

    def _new_id(self, event: Event) -> str:
        # From the old one and the replay, so that a replay that is resumed repeats its ids.
        return str(uuid5(self._replay_id, event.id))


def _encoded(event: dict[str, Any]) -> bytes:
    try:
        return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # A field that nobody reads may hold a lone surrogate, which only its escape can say.
        return json.dumps(event, separators=(",", ":")).encode()
