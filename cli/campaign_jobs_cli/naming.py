"""What an operator names on the command line: campaigns and people."""

import re
from typing import Any
from uuid import UUID

from campaign_jobs_cli.errors import NotFound, WrongInput
from campaign_jobs_cli.targets import Connection

# The address by its mailbox first, because that has an index that removed people are in, too.
_BY_ADDRESS = """
SELECT users.id FROM campaign_jobs.campaigns
JOIN campaign_jobs.waitlist_users AS users ON users.campaign_id = campaigns.id
    AND users.email_normalized = campaign_jobs.normalize_email(%(address)s)
WHERE lower(users.email) = lower(%(address)s)
    AND (%(campaign_id)s::uuid IS NULL OR campaigns.id = %(campaign_id)s::uuid)
ORDER BY users.created_at, users.id
"""

_BY_ID = """
SELECT users.id FROM campaign_jobs.waitlist_users AS users
WHERE users.id = %(id)s AND (%(campaign_id)s::uuid IS NULL OR campaign_id = %(campaign_id)s::uuid)
"""


def as_uuid(given: str) -> UUID | None:
    """The UUID that a text is, or None."""
    try:
        return UUID(given.strip())
    except ValueError:
        return None


def uuid(given: str, what: str) -> UUID:
    """Raises WrongInput where it is none."""
    if (found := as_uuid(given)) is None:
        raise WrongInput(f"{what} {given!r} is not a UUID such as 6f1c2a34-9f0b-4c57-8d1e-2b7a5c3d4e01")
    return found


def address(given: str) -> str:
    """An email address as it was typed. Raises WrongInput where it cannot be one."""
    found = given.strip()
    if not 3 <= len(found) <= 254 or not re.fullmatch(
        r"[^\s@<>\x00-\x1f\x7f]+@[^\s@<>\x00-\x1f\x7f]+", found
    ):
        raise WrongInput(f"{given!r} is not an email address such as ada@example.com")
    return found


def campaign(connection: Connection, given: str) -> dict[str, Any]:
    """The campaign of an id or a name: id, name, status, timezone and what mails need.

    Raises NotFound, and WrongInput where several have the name.
    """
    rows = connection.execute(
        "SELECT id, name, status, timezone, points_per_referral FROM campaign_jobs.campaigns"
        " WHERE id = %(id)s::uuid OR (%(id)s::uuid IS NULL AND lower(name) = lower(%(name)s))"
        " ORDER BY created_at LIMIT 11",
        {"id": as_uuid(given), "name": given},
    ).fetchall()
    if not rows:
        known = connection.execute(
            "SELECT name FROM campaign_jobs.campaigns ORDER BY created_at DESC LIMIT 5"
        ).fetchall()
        names = ", ".join(repr(row["name"]) for row in known)
        raise NotFound(f"there is no campaign {given!r}" + (f"; the newest are {names}" if names else ""))
    if len(rows) > 1:
        ids = ", ".join(str(row["id"]) for row in rows)
        raise WrongInput(f"several campaigns are named {given!r}; name one by its id: {ids}")
    return rows[0]


def optional_campaign(connection: Connection, given: str | None) -> UUID | None:
    """The id of a campaign, where one is named."""
    return None if given is None else UUID(str(campaign(connection, given)["id"]))


def people(connection: Connection, given: str, campaign_id: UUID | None = None) -> list[UUID]:
    """The ids of the users with that address, one for each campaign and sign-up, or of the one with that id."""
    if "@" in given:
        parameters = {"address": given.strip(), "campaign_id": campaign_id}
        rows = connection.execute(_BY_ADDRESS, parameters).fetchall()
    elif (id_ := as_uuid(given)) is not None:
        rows = connection.execute(_BY_ID, {"id": id_, "campaign_id": campaign_id}).fetchall()
    else:
        raise WrongInput(f"{given!r} is neither an email address nor a user's id")
    return [row["id"] for row in rows]


def person(connection: Connection, given: str, campaign_id: UUID | None = None) -> UUID:
    """The one user with that address or id. Raises NotFound, and WrongInput where there are several."""
    found = people(connection, given, campaign_id)
    if not found:
        raise NotFound(f"nobody is {given!r}" + (" in that campaign" if campaign_id else ""))
    if len(found) > 1:
        raise WrongInput(
            f"{given!r} has signed up {len(found)} times; name the campaign with --campaign, or one by id: "
            + ", ".join(map(str, found))
        )
    return found[0]
