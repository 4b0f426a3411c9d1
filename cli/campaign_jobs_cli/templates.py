"""`campaign-jobs templates`: the mails' templates, looked at and tried before and after they are stored."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from campaign_jobs.email.rendering import EMAIL_TYPES, RenderedEmail, built_in, validate
from campaign_jobs.errors import TemplateError
from campaign_jobs_cli import naming, session, templates_sources
from campaign_jobs_cli.errors import CommandError, ExitCode, WrongInput
from campaign_jobs_cli.output import Format, visible
from campaign_jobs_cli.suppressions_ses import reason_of_ses
from campaign_jobs_cli.targets import Connection, Target
from campaign_jobs_cli.templates_sources import Chosen, Personal

app = typer.Typer(
    help="The mails' templates: built-in ones, and those that campaigns have stored.", no_args_is_help=True
)

TEST_MARK: Final = "[Test] "

Type = Annotated[
    str, typer.Argument(metavar="TYPE", help=", ".join(EMAIL_TYPES), autocompletion=lambda: list(EMAIL_TYPES))
]
CampaignOption = Annotated[
    str | None, typer.Option("--campaign", help="As this campaign's mail is now; its id or name.")
]
TemplateOption = Annotated[
    str | None, typer.Option("--template", help="The id of a stored version, enabled or not.")
]
FilesOption = Annotated[
    Path | None,
    typer.Option(
        "--files", help="A directory with subject.txt, body.html and body.txt.", file_okay=False, exists=True
    ),
]
UserOption = Annotated[
    str | None,
    typer.Option("--user", help="With the values of this user (id or address) instead of made-up ones."),
]
RewardOption = Annotated[
    str | None, typer.Option("--user-reward", help="What a reward_earned mail is about; the user's newest.")
]
MilestoneOption = Annotated[int, typer.Option("--milestone", min=1, help="What a milestone mail is about.")]


@app.command("list")
def list_templates(
    context: typer.Context,
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="Only those that may make this campaign's mails.")
    ] = None,
) -> None:
    """List the stored versions, and the built-in templates behind them."""
    opened = session.of(context)
    with opened.target.database() as connection:
        campaign_id = naming.optional_campaign(connection, campaign)
        rows = connection.execute(
            "SELECT template.id, template.type, coalesce(campaigns.name, 'every campaign') AS whose,"
            " template.campaign_id, template.locale, template.version, template.enabled, template.subject,"
            " template.created_at FROM campaign_jobs.email_templates AS template"
            " LEFT JOIN campaign_jobs.campaigns ON campaigns.id = template.campaign_id"
            " WHERE %(campaign_id)s::uuid IS NULL OR template.campaign_id IS NULL"
            " OR template.campaign_id = %(campaign_id)s::uuid"
            " ORDER BY template.type, template.campaign_id NULLS LAST, template.locale, template.version",
            {"campaign_id": campaign_id},
        ).fetchall()
    overridden = {
        row["type"]
        for row in rows
        if row["enabled"] and row["locale"] == "en" and row["campaign_id"] in (None, campaign_id)
    }
    rows += [
        {
            "id": None,
            "type": type_,
            "whose": "built-in",
            "campaign_id": None,
            "locale": "en",
            "version": None,
            # Where nothing is stored for a type, or for some campaigns, it makes the mails.
            "enabled": type_ not in overridden,
            "subject": built_in(type_).subject.strip(),
            "created_at": None,
        }
        for type_ in EMAIL_TYPES
    ]
    rows.sort(key=lambda row: EMAIL_TYPES.index(row["type"]))
    opened.output.rows(rows, columns=("type", "whose", "version", "enabled", "subject", "id"))


@app.command()
def preview(
    context: typer.Context,
    type_: Type,
    *,
    campaign: CampaignOption = None,
    template: TemplateOption = None,
    files: FilesOption = None,
    user: UserOption = None,
    user_reward: RewardOption = None,
    milestone: MilestoneOption = 10,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Where the files go; a new directory unless given.", file_okay=False),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print the text part, and write no files.")] = False,
) -> None:
    """Render a template, and write its HTML and text to files."""
    opened = session.of(context)
    chosen, content, _ = _rendered(
        None if files is not None and user is None else opened.target,
        type_,
        campaign=campaign,
        template=template,
        files=files,
        user=user,
        user_reward=user_reward,
        milestone=milestone,
    )
    result: dict[str, Any] = {"template": chosen.template.name, "subject": content.subject}
    if text:
        if opened.output.format is Format.JSON:
            opened.output.record({**result, "text": content.text})
        else:
            opened.output.line(result, f"{content.subject}\n\n{content.text}")
        return
    if to is None:
        # Of a name that nobody can foresee, and closed to others: the mail may hold somebody's address.
        to = Path(tempfile.mkdtemp(prefix="campaign-jobs-preview-"))
    try:
        to.mkdir(parents=True, exist_ok=True)
        for part, suffix in ((content.html, "html"), (content.text, "txt")):
            file = to / f"{type_}.{suffix}"
            file.write_text(part, encoding="utf-8")
            result[f"{suffix}_file"] = str(file)
    except OSError as error:
        raise WrongInput(f"--to {to} cannot be written: {error.strerror}") from error
    opened.output.record(result)


@app.command("validate")
def validate_templates(
    context: typer.Context,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEMPLATE_ID]...", help="Stored versions; all unless given."),
    ] = None,
    files: FilesOption = None,
    type_: Annotated[
        str | None, typer.Option("--type", help=f"What --files is for: {', '.join(EMAIL_TYPES)}.")
    ] = None,
) -> None:
    """Find out whether templates will work: files before they are stored, stored versions before they are enabled.

    Exit code 1 if one will not.
    """
    opened = session.of(context)
    if files is not None:
        if type_ is None or ids:
            raise WrongInput("--files needs --type, and no ids")
        chosen = [templates_sources.from_files(files, type_)]
    else:
        with opened.target.database() as connection:
            chosen = (
                [templates_sources.stored(connection, naming.uuid(id_, "template")) for id_ in ids]
                if ids
                else _all_stored(connection)
            )
    rows = [_validated(each) for each in chosen]
    opened.output.rows(rows, columns=("template", "type", "works", "problem"))
    if not all(row["works"] for row in rows):
        raise typer.Exit(ExitCode.FAILED)


@app.command("send-test")
def send_test(
    context: typer.Context,
    type_: Type,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Where the test goes.")],
    *,
    campaign: CampaignOption = None,
    template: TemplateOption = None,
    files: FilesOption = None,
    user: UserOption = None,
    user_reward: RewardOption = None,
    milestone: MilestoneOption = 10,
    yes: session.Yes = False,
) -> None:
    """Send one rendered mail through SES, marked as a test. It is never recorded as somebody's mail.

    Suppressed addresses are refused, those on SES's own list for the account too.
    """
    opened = session.of(context)
    address = naming.address(address)
    target = opened.target
    chosen, content, sender = _rendered(
        target,
        type_,
        campaign=campaign,
        template=template,
        files=files,
        user=user,
        user_reward=user_reward,
        milestone=milestone,
    )
    _refuse_suppressed(target, address)
    subject = TEST_MARK + content.subject
    plan = {"template": chosen.template.name, "from": sender, "to": address, "subject": subject}
    if not yes:
        opened.output.note(visible(f'"{chosen.template.name}" from {sender}: {subject}'))
    opened.output.confirm(f"Send it to {address}?", yes=yes)
    answer = target.client("sesv2").send_email(
        FromEmailAddress=sender,
        Destination={"ToAddresses": [address]},
        Content={
            "Simple": {
                "Subject": _utf8(subject),
                "Body": {"Html": _utf8(content.html), "Text": _utf8(content.text)},
                "Headers": [{"Name": "X-Campaign-Jobs-Test", "Value": "yes"}],
            }
        },
        # Without the tag of a message, whatever SES reports of it is nobody's.
        EmailTags=[{"Name": "type", "Value": "test"}],
    )
    opened.output.record({**plan, "ses_message_id": answer["MessageId"]})


def _rendered(
    target: Target | None,
    type_: str,
    *,
    campaign: str | None,
    template: str | None,
    files: Path | None,
    user: str | None,
    user_reward: str | None,
    milestone: int,
) -> tuple[Chosen, RenderedEmail, str]:
    """The chosen template, the mail and its sender. Without a target, only from files and with made-up values."""
    templates_sources.check_type(type_)
    if template is not None and files is not None:
        raise WrongInput("--template and --files are two templates; allowed is one of them")
    if target is None:
        assert files is not None
        chosen = templates_sources.from_files(files, type_)
        return chosen, templates_sources.rendered(chosen), ""
    with target.database() as connection:
        campaign_id = naming.optional_campaign(connection, campaign)
        user_id = None if user is None else naming.person(connection, user, campaign_id)
        if user_id is not None and campaign_id is None:
            campaign_id = _campaign_of(connection, user_id)
        if files is not None:
            chosen = templates_sources.from_files(files, type_)
        elif template is not None:
            chosen = templates_sources.stored(connection, naming.uuid(template, "--template"))
            if chosen.type != type_:
                raise WrongInput(f"template {template} makes {chosen.type} mails, not {type_}")
        else:
            chosen = templates_sources.applying(connection, type_, campaign_id)
        if user_id is None:
            sender = _sender(connection, campaign_id or chosen.campaign_id) or target.default_sender
            return chosen, templates_sources.rendered(chosen), sender
        reward_id = None if user_reward is None else naming.uuid(user_reward, "--user-reward")
        content, sender = templates_sources.rendered_for(
            connection, chosen, Personal(user_id, reward_id, milestone), default_sender=target.default_sender
        )
        return chosen, content, sender


def _campaign_of(connection: Connection, user_id: UUID) -> UUID:
    row = connection.execute(
        "SELECT campaign_id FROM campaign_jobs.waitlist_users WHERE id = %s", (user_id,)
    ).fetchone()
    assert row is not None
    return UUID(str(row["campaign_id"]))


def _sender(connection: Connection, campaign_id: UUID | None) -> str | None:
    row = connection.execute(
        "SELECT from_email FROM campaign_jobs.campaigns WHERE id = %s", (campaign_id,)
    ).fetchone()
    return None if row is None else row["from_email"]


def _all_stored(connection: Connection) -> list[Chosen]:
    rows = connection.execute("SELECT * FROM campaign_jobs.email_templates ORDER BY type, version").fetchall()
    return [*map(templates_sources.of_row, rows), *(Chosen(built_in(type_), type_) for type_ in EMAIL_TYPES)]


def _validated(chosen: Chosen) -> dict[str, Any]:
    problem = templates_sources.length_problem(chosen.template)
    if problem is None:
        try:
            validate(chosen.template, chosen.type)
        except TemplateError as error:
            problem = str(error)
    return {
        "template": chosen.template.name,
        "id": chosen.id,
        "type": chosen.type,
        "works": problem is None,
        "problem": problem,
    }


def _refuse_suppressed(target: Target, address: str) -> None:
    with target.database() as connection:
        row = connection.execute(
            "SELECT max(reason) AS reason FROM campaign_jobs.email_suppressions"
            " WHERE address IN (lower(%(address)s), campaign_jobs.erased_address(%(address)s)) HAVING count(*) > 0",
            {"address": address},
        ).fetchone()
    if row is not None:
        raise SuppressedAddress(f"{address} is suppressed ({row['reason']}): nothing is ever sent to it")
    if (reason := reason_of_ses(target, address)) is not None:
        raise SuppressedAddress(f"{address} is on SES's suppression list of the account ({reason.lower()})")


class SuppressedAddress(CommandError):
    """A test would go to somebody who must not be written to."""


def _utf8(data: str) -> dict[str, str]:
    return {"Data": data, "Charset": "UTF-8"}
