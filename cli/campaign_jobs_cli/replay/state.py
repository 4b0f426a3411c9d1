"""How far a replay has got, in a file that outlasts the command."""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import typer

from campaign_jobs_cli.errors import WrongInput
from campaign_jobs_cli.records import Range
from campaign_jobs_cli.selection import Selection

FORMAT: Final = 1


@dataclass
class State:
    """All that is needed to go on: what was planned, and the next offset of each partition."""

    environment: str
    topic: str
    ranges: list[Range]
    selection: Selection
    again: bool
    rate: float
    """The most events that are published a second."""
    events: int
    """How many were planned."""
    replay_id: UUID = field(default_factory=uuid4)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    published: int = 0
    """Acknowledged ones; a killed command may have published a few more, which are published again."""
    next_offsets: dict[int, int] = field(default_factory=dict)

    def left(self) -> list[Range]:
        """What has not been looked at yet."""
        left = [
            Range(each.partition, self.next_offsets.get(each.partition, each.start), each.end)
            for each in self.ranges
        ]
        return [each for each in left if each.end is not None and each.start < each.end]

    def save(self, file: Path) -> None:
        """Whoever reads the file finds this state or the one before, whole."""
        content = {
            "format": FORMAT,
            "replay_id": str(self.replay_id),
            "environment": self.environment,
            "topic": self.topic,
            "started_at": self.started_at.isoformat(),
            "ranges": [[each.partition, each.start, each.end] for each in self.ranges],
            "next_offsets": {str(partition): offset for partition, offset in self.next_offsets.items()},
            "selection": self.selection.as_json(),
            "again": self.again,
            "rate": self.rate,
            "events": self.events,
            "published": self.published,
        }
        draft = file.with_name(file.name + ".new")
        with draft.open("w", encoding="utf-8") as opened:
            json.dump(content, opened, indent=2)
            opened.flush()
            os.fsync(opened.fileno())
        draft.replace(file)


def new_file(environment: str, state: State) -> Path:
    """Where a replay keeps its state: below the user's own directory for this command."""
    directory = Path(typer.get_app_dir("campaign-jobs")) / "replays"
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{environment}-{state.started_at:%Y%m%dT%H%M%S}-{str(state.replay_id)[:8]}.json"
    return directory / name


def load(file: Path) -> State:
    """Raises WrongInput where it is not the file of a replay."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}; this release reads {FORMAT}")
        chosen = content["selection"]
        return State(
            environment=content["environment"],
            topic=content["topic"],
            ranges=[Range(*each) for each in content["ranges"]],
            selection=Selection(
                frozenset(chosen["types"]),
                chosen["campaign"] and UUID(chosen["campaign"]),
                chosen["user"] and UUID(chosen["user"]),
            ),
            again=content["again"],
            rate=content["rate"],
            events=content["events"],
            replay_id=UUID(content["replay_id"]),
            started_at=datetime.fromisoformat(content["started_at"]),
            published=content["published"],
            next_offsets={int(partition): offset for partition, offset in content["next_offsets"].items()},
        )
    except OSError as error:
        raise WrongInput(f"--resume {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongInput(f"--resume {file}: it is no state of a replay ({error})") from error
