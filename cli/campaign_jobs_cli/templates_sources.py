"""Which template is meant, and what it is rendered with: made-up values, or a user's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from campaign_jobs.email.composing import Templates, compose
from campaign_jobs.email.rendering import (
    EMAIL_TYPES,
    RenderedEmail,
    Template,
    built_in,
    render,
    sample_context,
)
from campaign_jobs.email.store import load, load_templates
from campaign_jobs.email.unsubscribing.keys import KeyRing
from campaign_jobs.email.unsubscribing.links import UnsubscribeLinks
from campaign_jobs.events import EmailEvent, EmailJobPayload, EmailType, new_event
from campaign_jobs_cli.errors import NotFound, WrongInput
from campaign_jobs_cli.targets import Connection

EXAMPLE_URL: Final = "https://example.com"
# Nobody must be unsubscribed by a preview, or by a test that was forwarded: no environment knows this key.
_DEAD_LINKS: Final = UnsubscribeLinks(
    EXAMPLE_URL, KeyRing(lambda: (b"a key that no environment has at all",))
)

FILES: Final = {"subject": "subject.txt", "html": "body.html", "text": "body.txt"}
"""A template as files, named as the built-in ones are."""
LONGEST: Final = {"subject": 500, "html": 100_000, "text": 100_000}
"""As the columns of email_templates have it."""


@dataclass(frozen=True)
class Chosen:
    """The template that is meant, and its row where it has one."""

    template: Template
    type: str
    id: UUID | None = None
    campaign_id: UUID | None = None


def check_type(type_: str) -> None:
    """Raises WrongInput."""
    if type_ not in EMAIL_TYPES:
        raise WrongInput(f"there is no type of mail {type_!r}; the types are {', '.join(EMAIL_TYPES)}")


def from_files(directory: Path, type_: str) -> Chosen:
    """The template in a directory's subject.txt, body.html and body.txt. Raises WrongInput."""
    check_type(type_)
    parts = {}
    for part, name in FILES.items():
        try:
            parts[part] = (directory / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise WrongInput(
                f"{directory / name} cannot be read: {error}; a template is {', '.join(FILES.values())}"
            ) from error
    return Chosen(Template(name=str(directory), **parts), type_)


def stored(connection: Connection, id_: UUID) -> Chosen:
    """The row of email_templates. Raises NotFound."""
    row = connection.execute(
        "SELECT template.*, campaigns.name AS campaign FROM campaign_jobs.email_templates AS template"
        " LEFT JOIN campaign_jobs.campaigns ON campaigns.id = template.campaign_id WHERE template.id = %s",
        (id_,),
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no template {id_}; campaign-jobs templates list shows them")
    return of_row(row)


def of_row(row: Mapping[str, Any]) -> Chosen:
    whose = f"campaign {row['campaign_id']}" if row["campaign_id"] else "default"
    template = Template(
        name=f"{whose} {row['type']} v{row['version']}",
        subject=row["subject"],
        html=row["html"],
        text=row["text"],
    )
    return Chosen(template, row["type"], row["id"], row["campaign_id"])


def applying(connection: Connection, type_: str, campaign_id: UUID | None) -> Chosen:
    """The template that a mail of that type is made from now: the campaign's, the default one, or the built-in one."""
    check_type(type_)
    row = connection.execute(
        "SELECT * FROM campaign_jobs.email_templates WHERE enabled AND locale = 'en' AND type = %(type)s"
        " AND (campaign_id IS NULL OR campaign_id = %(campaign_id)s::uuid) ORDER BY campaign_id IS NULL LIMIT 1",
        {"type": type_, "campaign_id": campaign_id},
    ).fetchone()
    return Chosen(built_in(type_), type_) if row is None else of_row(row)


def length_problem(template: Template) -> str | None:
    """What the database would refuse of it, or None."""
    for part, longest in LONGEST.items():
        found = len(getattr(template, part))
        if not 1 <= found <= longest:
            return (
                f'template "{template.name}", {part}: it has {found} characters; allowed are 1 to {longest:,}'
            )
    return None


def rendered(chosen: Chosen) -> RenderedEmail:
    """With made-up values. Raises TemplateError."""
    return render(chosen.template, sample_context(chosen.type))


@dataclass(frozen=True)
class Personal:
    """Whose mail it is to be, and what it is about."""

    user_id: UUID
    user_reward_id: UUID | None = None
    milestone: int = 10


def rendered_for(
    connection: Connection, chosen: Chosen, personal: Personal, *, default_sender: str
) -> tuple[RenderedEmail, str]:
    """As the email job would render it for a user now, but for a dead unsubscribe link; and the sender's address.

    Nothing is decided or recorded. Raises NotFound, WrongInput, TemplateError and CannotCompose.
    """
    event = _event(connection, chosen, personal)
    loaded = load(connection, [event])[0]  # type: ignore[arg-type]  # its rows are dictionaries whatever ours are
    rows = load_templates(connection, [event])  # type: ignore[arg-type]
    if chosen.id is None:
        # From files or built in: of no row, so as if it were the campaign's enabled one.
        rows = [
            {
                "id": uuid4(),
                "campaign_id": event.data.campaign_id,
                "type": chosen.type,
                "version": 0,
                "applies": True,
                "subject": chosen.template.subject,
                "html": chosen.template.html,
                "text": chosen.template.text,
            }
        ]
    mail = compose(
        loaded,
        Templates(rows),
        default_sender=default_sender,
        default_base_url=EXAMPLE_URL,
        unsubscribe_links=_DEAD_LINKS,
    )
    return mail.content, mail.sender


def _event(connection: Connection, chosen: Chosen, personal: Personal) -> EmailEvent:
    user = connection.execute(
        "SELECT users.campaign_id, (SELECT id FROM campaign_jobs.user_rewards WHERE user_id = users.id"
        " ORDER BY earned_at DESC, id LIMIT 1) AS newest_reward_id"
        " FROM campaign_jobs.waitlist_users AS users WHERE id = %s",
        (personal.user_id,),
    ).fetchone()
    if user is None:
        raise NotFound(f"there is no user {personal.user_id}")
    if chosen.campaign_id not in (None, user["campaign_id"]):
        raise WrongInput(f'template "{chosen.template.name}" is another campaign\'s than the user')
    reward_id = personal.user_reward_id or user["newest_reward_id"]
    if chosen.type == "reward_earned" and reward_id is None:
        raise WrongInput("the user has earned no reward; leave out --user, or take somebody who has")
    type_: EmailType = chosen.type  # type: ignore[assignment]  # every way to a Chosen has checked it
    event = new_event(
        EmailJobPayload(
            type=type_,
            campaign_id=user["campaign_id"],
            user_id=personal.user_id,
            template_id=chosen.id,
            user_reward_id=reward_id if chosen.type == "reward_earned" else None,
            milestone=personal.milestone if chosen.type == "milestone" else None,
        )
    )
    assert isinstance(event, EmailEvent)
    return event
