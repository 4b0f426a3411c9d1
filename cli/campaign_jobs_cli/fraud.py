"""`campaign-jobs fraud`: the cases, their evidence, and a person's decision on them."""

import getpass
from collections.abc import Sequence
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from campaign_jobs.database.connection import Database
from campaign_jobs.fraud import cases
from campaign_jobs_cli import naming, session
from campaign_jobs_cli.errors import NotFound, WrongInput
from campaign_jobs_cli.output import Format
from campaign_jobs_cli.targets import Connection

app = typer.Typer(help="Fraud cases: who is held and why, and the decision on it.", no_args_is_help=True)

STATUSES: Final = ("open", "confirmed", "dismissed", "retracted")
DECISION_SECONDS: Final = 60

_LIST: Final = """
SELECT cases.id AS case_id, cases.status, cases.risk_score, cases.holding, cases.blocking, cases.opened_at,
    cases.decided_at, cases.decision_reason, cases.user_id, users.email, users.status AS user_status,
    campaigns.name AS campaign, cases.campaign_id,
    (SELECT string_agg(DISTINCT entry ->> 'check', ', ') FROM jsonb_array_elements(cases.evidence) AS entry) AS checks,
    (SELECT count(*) FROM campaign_jobs.user_rewards AS earned
     WHERE earned.user_id = cases.user_id AND earned.held_at IS NOT NULL AND earned.status = 'earned') AS rewards_held,
    (SELECT count(*) FROM campaign_jobs.referrals AS referral
     WHERE referral.status IN ('verified', 'converted')
         AND cases.user_id IN (referral.referrer_id, referral.referred_id)) AS referrals_affected
FROM campaign_jobs.fraud_cases AS cases
JOIN campaign_jobs.waitlist_users AS users ON users.id = cases.user_id
JOIN campaign_jobs.campaigns ON campaigns.id = cases.campaign_id
WHERE (%(ids)s::uuid[] IS NULL OR cases.id = ANY(%(ids)s::uuid[]) OR cases.user_id = ANY(%(ids)s::uuid[]))
    AND (%(status)s::text IS NULL OR cases.status = %(status)s)
    AND (%(campaign_id)s::uuid IS NULL OR cases.campaign_id = %(campaign_id)s::uuid)
ORDER BY cases.status <> 'open', cases.risk_score DESC, cases.opened_at, cases.id LIMIT %(limit)s
"""

_EVIDENCE: Final = """
SELECT entry ->> 'check' AS "check", (entry ->> 'weight')::integer AS weight,
    (entry ->> 'magnitude')::integer AS magnitude, entry ->> 'key' AS key, entry -> 'details' AS details
FROM campaign_jobs.fraud_cases, jsonb_array_elements(evidence) AS entry
WHERE id = %s ORDER BY weight DESC, "check", key
"""

# What is found now may be more, or less, than what the case was decided on.
_SIGNALS: Final = """
SELECT signal."check", signal.weight, signal.magnitude, signal.evidence_key AS key, related.email AS related_to,
    signal.first_seen_at, signal.last_seen_at, dismissal.band IS NOT NULL AS dismissed_before
FROM campaign_jobs.fraud_signals AS signal
LEFT JOIN campaign_jobs.waitlist_users AS related ON related.id = signal.related_user_id
LEFT JOIN campaign_jobs.fraud_dismissals AS dismissal
    ON (dismissal.user_id, dismissal."check", dismissal.evidence_key)
        = (signal.user_id, signal."check", signal.evidence_key)
WHERE signal.user_id = %s ORDER BY signal.weight DESC, signal."check", signal.evidence_key
"""

_REWARDS: Final = """
SELECT earned.id AS user_reward_id, rewards.name AS reward, earned.status, earned.held_at
FROM campaign_jobs.user_rewards AS earned JOIN campaign_jobs.rewards ON rewards.id = earned.reward_id
WHERE earned.user_id = %s ORDER BY earned.earned_at, earned.id
"""

Ids = Annotated[list[str], typer.Argument(metavar="CASE_ID...")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for whoever asks later.")]
Reviewer = Annotated[
    str,
    typer.Option("--reviewer", help="Who decides; stands behind the reason.", show_default="your login name"),
]


def login_name() -> str:
    """Who is at the keyboard, as far as the system knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@app.command("list")
def list_cases(
    context: typer.Context,
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="Of this campaign alone, by id or name.")
    ] = None,
    status: Annotated[str, typer.Option("--status", help=f"{', '.join(STATUSES)}, or all.")] = "open",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the riskiest first.")] = 50,
) -> None:
    """List cases, the riskiest first."""
    opened = session.of(context)
    if status not in (*STATUSES, "all"):
        raise WrongInput(f"--status is {status!r}; allowed are {', '.join(STATUSES)} and all")
    with opened.target.database() as connection:
        rows = _read(
            connection,
            status=None if status == "all" else status,
            campaign_id=naming.optional_campaign(connection, campaign),
            limit=limit,
        )
    opened.output.rows(
        rows,
        columns=(
            "case_id",
            "email",
            "campaign",
            "status",
            "risk_score",
            "checks",
            "holding",
            "rewards_held",
            "opened_at",
        ),
    )
    if len(rows) == limit:
        opened.output.note(f"Only the first {limit}; --limit shows more.")


@app.command()
def show(
    context: typer.Context,
    which: Annotated[str, typer.Argument(metavar="CASE_ID|USER_ID|EMAIL")],
) -> None:
    """Show cases with their evidence, what is found about the user now, and what is held."""
    opened = session.of(context)
    with opened.target.database() as connection:
        ids = naming.people(connection, which) if "@" in which else [naming.uuid(which, "case")]
        found = _read(connection, ids=ids) if ids else []
        if not found:
            raise NotFound(f"there is no fraud case {which}, and no case of such a user")
        for case in found:
            case["evidence"] = connection.execute(_EVIDENCE, (case["case_id"],)).fetchall()
            case["signals_now"] = connection.execute(_SIGNALS, (case["user_id"],)).fetchall()
            case["rewards"] = connection.execute(_REWARDS, (case["user_id"],)).fetchall()
    if opened.output.format is Format.JSON:
        opened.output.record({"cases": found})
        return
    for number, case in enumerate(found):
        if number:
            opened.output.results.rule(style="dim")
        shown = {name: value for name, value in case.items() if value is not None and value != []}
        opened.output.record(shown)
    if any(case["status"] == "open" for case in found):
        opened.output.note(f"{opened.target.command} fraud confirm|dismiss CASE_ID --reason TEXT decides.")


@app.command()
def confirm(
    context: typer.Context, ids: Ids, reason: Reason, reviewer: Reviewer = "", yes: session.Yes = False
) -> None:
    """Decide that it is fraud: the hold stays for good, and rewards that it withheld are revoked."""
    _decide(context, ids, "confirm", reason=reason, reviewer=reviewer, yes=yes)


@app.command()
def dismiss(
    context: typer.Context, ids: Ids, reason: Reason, reviewer: Reviewer = "", yes: session.Yes = False
) -> None:
    """Decide that it is none: what was withheld is delivered, a block ends, the same evidence opens no case again."""
    _decide(context, ids, "dismiss", reason=reason, reviewer=reviewer, yes=yes)


def _decide(
    context: typer.Context, given: Sequence[str], decision: str, *, reason: str, reviewer: str, yes: bool
) -> None:
    opened = session.of(context)
    # The table has no column for it, and a decision without a name is worth less to whoever asks later.
    reason = f"{reason.strip()} (decided by {reviewer or login_name()})" if reason.strip() else ""
    if not 0 < len(reason) <= cases.MAX_REASON_LENGTH:
        raise WrongInput(f"--reason, with the reviewer, may have 1 to {cases.MAX_REASON_LENGTH} characters")
    # In this order, because each decision locks its case.
    ids = sorted({naming.uuid(id_, "case") for id_ in given})
    with opened.target.database() as connection:
        found = {case["case_id"]: case for case in _read(connection, ids=ids, limit=len(ids))}
    for id_ in ids:
        if id_ not in found:
            raise NotFound(f"there is no fraud case {id_}")
        if found[id_]["status"] != "open":
            raise WrongInput(
                f"fraud case {id_} is {found[id_]['status']} already; only an open one can be decided"
            )
    plan = [_consequences(found[id_], decision) for id_ in ids]
    opened.output.beforehand.rows(
        plan, columns=("case_id", "email", "risk_score", "rewards_held", "rewards", "referrals", "user")
    )
    count = "this case" if len(ids) == 1 else f"these {len(ids)} cases"
    opened.output.confirm(f"{decision.capitalize()} {count}?", yes=yes)
    decide = cases.confirm if decision == "confirm" else cases.dismiss
    database = Database(
        opened.target.conninfo,
        application_name="campaign-jobs command line",
        timeout_seconds=DECISION_SECONDS,
    )
    try:
        with database.transaction() as connection:
            for id_ in ids:
                decide(connection, id_, reason=reason)
    finally:
        database.close()
    opened.output.record({"decision": decision, "cases": [str(id_) for id_ in ids], "reason": reason})
    opened.output.note("Positions are calculated again within about two minutes.")


def _consequences(case: dict[str, Any], decision: str) -> dict[str, Any]:
    confirms = decision == "confirm"
    holds = case["holding"] or case["user_status"] == "blocked"
    plan = {name: case[name] for name in ("case_id", "email", "user_id", "risk_score", "rewards_held")}
    plan["rewards"] = ("revoked" if confirms else "delivered") if case["rewards_held"] else "none is held"
    affected = case["referrals_affected"]
    if confirms:
        plan["referrals"] = f"{affected} do not count, for good"
        plan["user"] = "stays blocked" if case["user_status"] == "blocked" else f"stays {case['user_status']}"
    else:
        plan["referrals"] = f"{affected} count again" if holds else "unchanged"
        unblocks = case["blocking"] and case["user_status"] == "blocked"
        plan["user"] = "unblocked" if unblocks else f"stays {case['user_status']}"
    return plan


def _read(
    connection: Connection,
    *,
    ids: Sequence[UUID] | None = None,
    status: str | None = None,
    campaign_id: UUID | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    return connection.execute(
        _LIST,
        {
            "ids": None if ids is None else list(ids),
            "status": status,
            "campaign_id": campaign_id,
            "limit": limit,
        },
    ).fetchall()
