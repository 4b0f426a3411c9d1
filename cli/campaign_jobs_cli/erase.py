"""`campaign-jobs erase`: what tells who somebody is goes, what was counted stays."""

from dataclasses import asdict
from typing import Annotated, Any
from uuid import UUID

import typer

from campaign_jobs.database.connection import Database
from campaign_jobs.erasing import erase as erase_user
from campaign_jobs_cli import naming, session
from campaign_jobs_cli.errors import NotFound
from campaign_jobs_cli.targets import Connection

_DESCRIBE = """
SELECT users.id AS user_id, campaigns.name AS campaign, users.email, users.status
FROM campaign_jobs.waitlist_users AS users JOIN campaign_jobs.campaigns ON campaigns.id = users.campaign_id
WHERE users.id = ANY (%s) ORDER BY campaigns.name, users.id
"""


def erase(
    context: typer.Context,
    who: Annotated[str, typer.Argument(metavar="EMAIL|USER_ID")],
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="Of this campaign alone, by id or name.")
    ] = None,
    yes: session.Yes = False,
) -> None:
    """Erase a person: address, name, IP, user agent, fingerprint and codes go; what was counted stays.

    An address is erased in every campaign, unless one is named. Referrals and numbers go on counting the person, nobody
    can be written to any more, and an address that was suppressed stays so, as a hash. What has left the database (the
    topic, queues, SES, receivers of webhooks) ends by its own retention: docs/data-contract.md.
    """
    opened = session.of(context)
    target, output = opened.target, opened.output
    with target.database() as connection:
        people = _found(connection, who, campaign)
    database = Database(target.conninfo, application_name="campaign-jobs command line")
    try:
        plan = [{**person, **_counted(database, person["user_id"], dry_run=True)} for person in people]
        output.beforehand.rows(plan, columns=list(plan[0]), title="What would be removed, in rows")
        output.confirm(
            f"Erase {len(plan)} of them for good?" if len(plan) > 1 else "Erase for good?", yes=yes
        )
        with output.progress("Erasing", len(people)) as advance:
            erased = []
            for person in people:
                counts = _counted(database, person["user_id"], dry_run=False)
                erased.append({"user_id": person["user_id"], "campaign": person["campaign"], **counts})
                advance()
    finally:
        database.close()
    output.rows(erased, columns=list(erased[0]), title="Removed, in rows")


def _found(connection: Connection, who: str, campaign: str | None) -> list[dict[str, Any]]:
    found = naming.people(connection, who, naming.optional_campaign(connection, campaign))
    if not found:
        raise NotFound(f"nobody is {who!r}" + (" in that campaign" if campaign else ""))
    return connection.execute(_DESCRIBE, [found]).fetchall()


def _counted(database: Database, user_id: UUID, *, dry_run: bool) -> dict[str, int]:
    return asdict(erase_user(database, user_id, dry_run=dry_run))
