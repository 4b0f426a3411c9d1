"""`campaign-jobs suppressions`: addresses that are never written to, in our table and on SES's own list."""

from typing import Annotated, Any, Final

import typer

from campaign_jobs_cli import naming, session, suppressions_ses
from campaign_jobs_cli.errors import WrongInput
from campaign_jobs_cli.targets import Connection, Target

app = typer.Typer(
    help="Addresses that are never written to. The table is this environment's; SES has a list of its own for the "
    "account, which --ses includes.",
    no_args_is_help=True,
)

OUR_LIST: Final = "campaign-jobs"
REASONS: Final = ("bounce", "complaint", "manual")

Addresses = Annotated[list[str], typer.Argument(metavar="ADDRESS...")]

# Of somebody who was erased, only the address's hash is left.
_FIND: Final = """
SELECT wanted.address, stored.reason, stored.created_at, count(users.id) AS users
FROM unnest(%(addresses)s::text[]) AS wanted (address)
LEFT JOIN LATERAL (
    SELECT reason, created_at FROM campaign_jobs.email_suppressions
    WHERE address IN (wanted.address, campaign_jobs.erased_address(wanted.address)) ORDER BY reason DESC LIMIT 1
) AS stored ON true
LEFT JOIN campaign_jobs.campaigns ON true
LEFT JOIN campaign_jobs.waitlist_users AS users ON users.campaign_id = campaigns.id
    AND lower(users.email) = wanted.address AND users.deleted_at IS NULL
GROUP BY wanted.address, stored.reason, stored.created_at ORDER BY wanted.address
"""

_REMOVE: Final = """
DELETE FROM campaign_jobs.email_suppressions AS stored
USING unnest(%(addresses)s::text[]) AS wanted (address)
WHERE stored.address IN (wanted.address, campaign_jobs.erased_address(wanted.address))
"""

# An operator's word is the last: no bounce and no complaint replaces it.
_ADD: Final = """
INSERT INTO campaign_jobs.email_suppressions (address, reason)
SELECT address, 'manual' FROM unnest(%(addresses)s::text[]) AS wanted (address) ORDER BY address
ON CONFLICT (address) DO UPDATE SET reason = 'manual' WHERE email_suppressions.reason <> 'manual'
"""


@app.command("list")
def list_suppressions(
    context: typer.Context,
    containing: Annotated[
        str | None,
        typer.Option("--containing", help="Only addresses with this in them, such as @example.com."),
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help=f"{', '.join(REASONS)}.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="At most so many of each list, the newest first.")
    ] = 100,
    ses: Annotated[bool, typer.Option("--ses", help="SES's list of the account as well.")] = False,
) -> None:
    """List suppressed addresses, the newest first. Of people who were erased, a hash stands for the address."""
    opened = session.of(context)
    if reason is not None and reason not in REASONS:
        raise WrongInput(f"--reason is {reason!r}; allowed are {', '.join(REASONS)}")
    with opened.target.database() as connection:
        rows: list[dict[str, Any]] = connection.execute(
            f"SELECT address, '{OUR_LIST}' AS list, reason, created_at FROM campaign_jobs.email_suppressions"  # noqa: S608
            " WHERE (%(reason)s::text IS NULL OR reason = %(reason)s)"
            " AND (%(containing)s::text IS NULL OR position(lower(%(containing)s) IN address) > 0)"
            " ORDER BY created_at DESC, address LIMIT %(limit)s",
            {"reason": reason, "containing": containing, "limit": limit},
        ).fetchall()
    if ses:
        with opened.output.progress("Asking SES"):
            listed = [
                entry
                for entry in suppressions_ses.listed(opened.target)
                if reason in (None, entry["reason"])
                and (containing is None or containing.lower() in entry["address"].lower())
            ]
        listed.sort(key=lambda entry: entry["created_at"], reverse=True)
        rows += listed[:limit]
    opened.output.rows(rows, columns=("address", "list", "reason", "created_at"))
    if not ses:
        opened.output.note("SES has a suppression list of its own for the account: --ses shows it, too.")


@app.command()
def add(context: typer.Context, addresses: Addresses, yes: session.Yes = False) -> None:
    """Never write to these addresses again, whatever the campaign. SES's own list stays as it is."""
    opened = session.of(context)
    wanted = _lowered(addresses)
    with opened.target.database() as connection:
        plan = [
            {**row, "becomes": "unchanged" if row["reason"] == "manual" else "manual"}
            for row in _found(connection, wanted)
        ]
        opened.output.beforehand.rows(plan, columns=("address", "users", "reason", "becomes"))
        opened.output.confirm(f"Suppress {_counted(wanted)}?", yes=yes)
        connection.execute(_ADD, {"addresses": wanted})
    opened.output.record({"suppressed": wanted})


@app.command()
def remove(
    context: typer.Context,
    addresses: Addresses,
    ses: Annotated[
        bool,
        typer.Option(
            "--ses/--keep-ses", help="Take them off SES's list, too; else SES goes on refusing them."
        ),
    ] = True,
    yes: session.Yes = False,
) -> None:
    """Write to these addresses again. A new bounce or complaint brings the suppression back."""
    opened = session.of(context)
    wanted = _lowered(addresses)
    with opened.target.database() as connection:
        plan = _found(connection, wanted)
        for row in plan:
            row["on_the_ses_list"] = _on_ses_list(opened.target, row["address"], addresses) if ses else None
        opened.output.beforehand.rows(
            plan, columns=("address", "users", "reason", "created_at", "on_the_ses_list")
        )
        complaints = sum("complaint" in (row["reason"], str(row["on_the_ses_list"]).lower()) for row in plan)
        if complaints:
            opened.output.note(
                f"{complaints} of them complained about a mail: ask before you write to them again."
            )
        opened.output.confirm(f"Write to {_counted(wanted)} again?", yes=yes)
        removed = connection.execute(_REMOVE, {"addresses": wanted}).rowcount
    spelled = dict.fromkeys((*map(str.strip, addresses), *wanted)) if ses else ()
    on_ses = {address.lower() for address in spelled if suppressions_ses.delete(opened.target, address)}
    opened.output.record({"lifted": wanted, "removed_here": removed, "removed_from_ses": len(on_ses)})


def _on_ses_list(target: Target, address: str, given: list[str]) -> str | None:
    spelled = next((each.strip() for each in given if each.strip().lower() == address), address)
    return suppressions_ses.reason_of_ses(target, spelled)


def _found(connection: Connection, addresses: list[str]) -> list[dict[str, Any]]:
    return connection.execute(_FIND, {"addresses": addresses}).fetchall()


def _lowered(addresses: list[str]) -> list[str]:
    return sorted({naming.address(address).lower() for address in addresses})


def _counted(addresses: list[str]) -> str:
    return addresses[0] if len(addresses) == 1 else f"{len(addresses)} addresses"
