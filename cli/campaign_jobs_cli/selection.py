"""Which events are meant: by type, campaign and user."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from campaign_jobs import catalog
from campaign_jobs.events import EMAIL_EVENT_PREFIX, Event, PositionEvent, RewardEvent
from campaign_jobs_cli import naming
from campaign_jobs_cli.errors import WrongInput
from campaign_jobs_cli.targets import Target

_JOB_TYPES: Final = {each.name: each.event_types for each in catalog.EVENT_JOB_TYPES if each.event_types}
_SHORT: Final = {
    name.removeprefix(EMAIL_EVENT_PREFIX): name
    for name in catalog.JOB_TYPE_BY_EVENT_TYPE
    if name.startswith(EMAIL_EVENT_PREFIX)
}


def _complete(incomplete: str) -> list[str]:
    names = [*_JOB_TYPES, *_SHORT, *catalog.JOB_TYPE_BY_EVENT_TYPE]
    return [name for name in names if name.startswith(incomplete)]


Types = Annotated[
    list[str],
    typer.Option(
        "--type",
        help="Only events of this type: job.email.welcome, in short welcome, or all of a job type: email, position, "
        "reward. May be given several times.",
        autocompletion=_complete,
    ),
]
Campaign = Annotated[
    str | None, typer.Option("--campaign", help="Only events of this campaign, by id or name.")
]
User = Annotated[
    str | None,
    typer.Option(
        "--user", help="Only events of this user, by id or address; recalculations are nobody's alone."
    ),
]


@dataclass(frozen=True)
class Selection:
    types: frozenset[str] = frozenset()
    """Event types; empty means all."""
    campaign: UUID | None = None
    user: UUID | None = None

    @classmethod
    def of(cls, target: Target, types: Iterable[str], campaign: str | None, user: str | None) -> "Selection":
        """From what was given on the command line. Raises WrongInput, NotFound and Unreachable."""
        event_types = frozenset(each for name in types for each in _event_types(name))
        campaign_id = None if campaign is None else campaign_of(target, campaign)
        return cls(event_types, campaign_id, None if user is None else user_of(target, user, campaign_id))

    @property
    def is_everything(self) -> bool:
        return not self.types and self.campaign is None and self.user is None

    def chosen(self, found: Sequence[Event], owners: "RewardOwners") -> list[bool]:
        """Which of some events are meant, in their order. Raises Unreachable where the database has to tell."""
        of_type = [not self.types or event.type in self.types for event in found]
        if self.campaign is None and self.user is None:
            return of_type
        owner_of = owners.of(
            {
                event.data.user_reward_id
                for event, fits in zip(found, of_type, strict=True)
                if fits and isinstance(event, RewardEvent)
            }
        )
        return [
            fits and self._fits(*_campaign_and_user(event, owner_of))
            for event, fits in zip(found, of_type, strict=True)
        ]

    def _fits(self, campaign: UUID | None, user: UUID | None) -> bool:
        return self.campaign in (None, campaign) and self.user in (None, user)

    def as_json(self) -> dict[str, Any]:
        return {
            "types": sorted(self.types),
            "campaign": self.campaign and str(self.campaign),
            "user": self.user and str(self.user),
        }


@dataclass
class RewardOwners:
    """Campaign and user of user rewards, which their events do not name. Remembers what it has looked up."""

    target: Target
    _known: dict[UUID, tuple[UUID, UUID]] = field(default_factory=dict)

    def of(self, ids: Collection[UUID]) -> Mapping[UUID, tuple[UUID, UUID]]:
        """Those of the user rewards that are there. Raises Unreachable."""
        if missing := [each for each in ids if each not in self._known]:
            with self.target.database() as connection:
                rows = connection.execute(
                    "SELECT id, campaign_id, user_id FROM campaign_jobs.user_rewards WHERE id = ANY (%s)",
                    [missing],
                ).fetchall()
            self._known.update({row["id"]: (row["campaign_id"], row["user_id"]) for row in rows})
        return self._known


def campaign_of(target: Target, given: str) -> UUID:
    """A campaign by id, whether it is there or not, or by name. Raises NotFound, WrongInput and Unreachable."""
    if (found := naming.as_uuid(given)) is not None:
        return found
    with target.database() as connection:
        return UUID(str(naming.campaign(connection, given)["id"]))


def user_of(target: Target, given: str, campaign: UUID | None = None) -> UUID:
    """A user by id, whether they are there or not, or by address. Raises NotFound, WrongInput and Unreachable."""
    if (found := naming.as_uuid(given)) is not None:
        return found
    with target.database() as connection:
        return naming.person(connection, given, campaign)


def _campaign_and_user(
    event: Event, owner_of: Mapping[UUID, tuple[UUID, UUID]]
) -> tuple[UUID | None, UUID | None]:
    if isinstance(event, RewardEvent):
        return owner_of.get(event.data.user_reward_id, (None, None))
    if isinstance(event, PositionEvent):
        return event.data.campaign_id, None
    return event.data.campaign_id, event.data.user_id


def _event_types(name: str) -> Sequence[str]:
    if name in catalog.JOB_TYPE_BY_EVENT_TYPE:
        return (name,)
    if name in _SHORT:
        return (_SHORT[name],)
    if name in _JOB_TYPES:
        return _JOB_TYPES[name]
    allowed = ", ".join([*catalog.JOB_TYPE_BY_EVENT_TYPE, *_SHORT, *_JOB_TYPES])
    raise WrongInput(f"--type {name}: there is no such event type; allowed are {allowed}")
