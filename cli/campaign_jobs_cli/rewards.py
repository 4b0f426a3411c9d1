"""`campaign-jobs rewards`: what people have earned and not received, and what an operator can do about it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from campaign_jobs import outbox
from campaign_jobs.database.connection import Connection as JobConnection
from campaign_jobs.database.connection import Database
from campaign_jobs.events import RewardDeliveryJobPayload
from campaign_jobs.reward import decisions, settlement, store
from campaign_jobs.reward.decisions import DeliverByEmail, DeliverByWebhook, Hold, Park, Rest, UserReward
from campaign_jobs.worker.outcomes import Later, Skipped
from campaign_jobs_cli import naming, session
from campaign_jobs_cli.errors import WrongInput
from campaign_jobs_cli.targets import Connection, Target

app = typer.Typer(
    help="Rewards that people have earned: who waits for what, and delivering it.", no_args_is_help=True
)

STATUSES: Final = ("earned", "delivering", "delivered", "failed", "redeemed", "revoked", "expired")
METHODS: Final = ("email", "webhook", "manual")
AT_ONCE: Final = 1_000
"""User rewards in one transaction."""
STATEMENT_SECONDS: Final = 60

_LIST: Final = """
SELECT earned.id AS user_reward_id, users.email, earned.user_id, campaigns.name AS campaign, rewards.name AS reward,
    rewards.id AS reward_id, rewards.delivery_method AS method, earned.status, earned.attempts, earned.last_error,
    earned.earned_at, earned.delivered_at, earned.held_at, earned.parked_at
FROM campaign_jobs.user_rewards AS earned
JOIN campaign_jobs.rewards ON rewards.id = earned.reward_id
JOIN campaign_jobs.campaigns ON campaigns.id = earned.campaign_id
JOIN campaign_jobs.waitlist_users AS users ON users.id = earned.user_id
WHERE (%(ids)s::uuid[] IS NULL OR earned.id = ANY(%(ids)s::uuid[]))
    AND (%(statuses)s::text[] IS NULL OR earned.status = ANY(%(statuses)s::text[]))
    AND (%(method)s::text IS NULL OR rewards.delivery_method = %(method)s)
    AND (%(campaign_id)s::uuid IS NULL OR earned.campaign_id = %(campaign_id)s::uuid)
ORDER BY earned.earned_at DESC, earned.id LIMIT %(limit)s
"""

# Without those that somebody has just asked for: their event waits in the outbox. A page by the id that follows.
_FAILED: Final = """
SELECT earned.id FROM campaign_jobs.user_rewards AS earned
JOIN campaign_jobs.rewards ON rewards.id = earned.reward_id
WHERE earned.status = 'failed' AND earned.id > %(after)s
    AND (%(campaign_id)s::uuid IS NULL OR earned.campaign_id = %(campaign_id)s::uuid)
    AND (%(reward_id)s::uuid IS NULL OR earned.reward_id = %(reward_id)s::uuid)
    AND (%(endpoint_id)s::uuid IS NULL OR rewards.webhook_endpoint_id = %(endpoint_id)s::uuid)
    AND NOT EXISTS (
        SELECT FROM campaign_jobs.outbox AS waiting
        WHERE waiting.published_at IS NULL AND waiting.refused IS NULL
            AND waiting.partition_key = earned.id::text AND waiting.event ->> 'type' = 'job.reward.deliver')
ORDER BY earned.id LIMIT %(limit)s
"""

NO_ID: Final = UUID(int=0)

ASKED: Final = "asked for again"
MARKED: Final = "marked as delivered"


@app.command("list")
def list_rewards(
    context: typer.Context,
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="Of this campaign alone, by id or name.")
    ] = None,
    status: Annotated[
        list[str] | None, typer.Option("--status", help=f"{', '.join(STATUSES)}; may be given again.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help=f"{', '.join(METHODS)}.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest first.")] = 50,
) -> None:
    """List what people have earned, by default what they have not received: earned, delivering and failed."""
    opened = session.of(context)
    for each in status or ():
        if each not in STATUSES:
            raise WrongInput(f"--status is {each!r}; allowed are {', '.join(STATUSES)}")
    if method is not None and method not in METHODS:
        raise WrongInput(f"--method is {method!r}; allowed are {', '.join(METHODS)}")
    with opened.target.database() as connection:
        rows = _rows(
            connection,
            statuses=status or ["earned", "delivering", "failed"],
            method=method,
            campaign_id=naming.optional_campaign(connection, campaign),
            limit=limit,
        )
    opened.output.rows(
        rows,
        columns=(
            "user_reward_id",
            "email",
            "reward",
            "method",
            "status",
            "attempts",
            "last_error",
            "earned_at",
        ),
    )


@app.command()
def deliver(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="USER_REWARD_ID...")],
    yes: session.Yes = False,
) -> None:
    """Mark what was delivered by hand, and ask again for what mail or webhook should have delivered.

    A reward of the method manual waits for an operator, and this says that it has been handed over. For the others a
    new event goes through the outbox: the job decides once more, and delivers nothing twice. Where one of them cannot
    be delivered now, nothing is done.
    """
    opened = session.of(context)
    wanted = sorted({naming.uuid(id_, "user reward") for id_ in ids})
    with opened.target.database() as connection:
        found = {row["user_reward_id"]: row for row in _rows(connection, ids=wanted, limit=len(wanted))}
    with _jobs_database(opened.target) as database:
        with database.transaction() as connection_of_jobs:
            planned = _planned(connection_of_jobs, wanted)
        plan = [{**found.get(id_, {"user_reward_id": id_}), "outcome": planned[id_]} for id_ in wanted]
        opened.output.beforehand.rows(
            plan, columns=("user_reward_id", "email", "reward", "method", "status", "outcome")
        )
        if refused := [id_ for id_ in wanted if planned[id_] not in (ASKED, MARKED)]:
            raise WrongInput(
                f"{len(refused)} of {len(wanted)} cannot be delivered now, so nothing was changed"
            )
        opened.output.confirm(f"Do this for {_counted(len(wanted))}?", yes=yes)
        with database.transaction() as connection_of_jobs:
            for id_ in wanted:
                if planned[id_] == MARKED:
                    settlement.deliver_manually(connection_of_jobs, id_)
            asked = _ask(connection_of_jobs, [id_ for id_ in wanted if planned[id_] == ASKED])
    opened.output.record({"marked_as_delivered": len(wanted) - asked, "asked_for_again": asked})


@app.command()
def retry(
    context: typer.Context,
    *,
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="Of this campaign, by id or name.")
    ] = None,
    reward: Annotated[str | None, typer.Option("--reward", help="Of this reward, by its id.")] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="Of the rewards that this webhook endpoint delivers, by its id."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of the environment.")] = False,
    yes: session.Yes = False,
) -> None:
    """Ask again for all failed deliveries of a campaign, a reward or an endpoint.

    Each gets a new event through the outbox. What is asked for already is left out, so that a run that was interrupted
    is simply repeated.
    """
    opened = session.of(context)
    if not (campaign or reward or endpoint or everything):
        raise WrongInput("name a --campaign, --reward or --endpoint, or say --all")
    with opened.target.database() as connection:
        which: dict[str, Any] = {
            "campaign_id": naming.optional_campaign(connection, campaign),
            "reward_id": None if reward is None else naming.uuid(reward, "--reward"),
            "endpoint_id": None if endpoint is None else naming.uuid(endpoint, "--endpoint"),
        }
    with _jobs_database(opened.target) as database:
        with opened.output.progress("Looking at failed deliveries") as advance:
            plan: dict[tuple[str, str, str], int] = {}
            for planned in _pages(database, which):
                for reward_name, method, outcome in planned.values():
                    key = (reward_name, method, outcome)
                    plan[key] = plan.get(key, 0) + 1
                advance(len(planned))
        opened.output.beforehand.rows(
            [
                {"reward": name, "method": method, "outcome": outcome, "count": count}
                for (name, method, outcome), count in sorted(plan.items())
            ],
            columns=("reward", "method", "outcome", "count"),
            title="Failed deliveries",
        )
        total = sum(count for (_, _, outcome), count in plan.items() if outcome == ASKED)
        if not total:
            opened.output.record({"asked_for_again": 0})
            return
        opened.output.confirm(f"Ask again for {_counted(total)}?", yes=yes)
        asked = 0
        with opened.output.progress("Asking again", total) as advance:
            for planned in _pages(database, which):
                ids = [id_ for id_, (_, _, outcome) in planned.items() if outcome == ASKED]
                with database.transaction() as connection_of_jobs:
                    asked += _ask(connection_of_jobs, ids)
                advance(len(ids))
    opened.output.record({"asked_for_again": asked})


def _ask(connection: JobConnection, ids: Sequence[UUID]) -> int:
    """A new event for each, in the caller's transaction. The job decides, so nothing of the row is locked here."""
    return outbox.enqueue(connection, [RewardDeliveryJobPayload(user_reward_id=id_) for id_ in ids])


def _planned(connection: JobConnection, ids: Sequence[UUID]) -> dict[UUID, str]:
    _, rewards = store.load(connection, ids)
    return {
        id_: outcome(rewards[id_]) if id_ in rewards else "impossible: there is no such user reward"
        for id_ in ids
    }


def outcome(reward: UserReward) -> str:
    """What would become of it, by the decision that the job itself takes."""
    decision = decisions.decide(reward)
    if isinstance(decision, (DeliverByEmail, DeliverByWebhook, Rest)):
        return ASKED
    if isinstance(decision, Hold):
        return "impossible: a fraud case holds it; confirm or dismiss the case first"
    if isinstance(decision, Park):
        return f"impossible: its endpoint is disabled ({decision.reason}); enable it, and relay emits what was parked"
    if isinstance(decision, Later):
        return "impossible: it is being delivered at this moment"
    assert isinstance(decision, Skipped)
    if reward.delivery_method == "manual" and reward.status in ("earned", "failed") and _nothing_else(reward):
        return MARKED
    return f"impossible: {decision.reason}"


def _nothing_else(reward: UserReward) -> bool:
    """Whether the decision was taken for the method alone: it looks at expiry and user before."""
    expired = reward.expires_at is not None and reward.expires_at <= reward.now
    return not expired and reward.user_status in decisions.DELIVERABLE_USER_STATUSES


def _pages(database: Database, which: dict[str, Any]) -> Iterator[dict[UUID, tuple[str, str, str]]]:
    """Failed user rewards a page at a time, each with its reward's name and method and what would become of it."""
    after = NO_ID
    while True:
        with database.transaction() as connection:
            rows = connection.execute(_FAILED, {**which, "after": after, "limit": AT_ONCE}).fetchall()
            ids = [row[0] for row in rows]
            _, rewards = store.load(connection, ids)
        if not ids:
            return
        yield {
            # Those that are delivered by hand have not failed on the way: their operator has to see to them.
            id_: (reward.reward_name, reward.delivery_method, "left to an operator")
            if (found := outcome(reward)) == MARKED
            else (reward.reward_name, reward.delivery_method, found)
            for id_, reward in rewards.items()
        }
        after = ids[-1]


@contextmanager
def _jobs_database(target: Target) -> Iterator[Database]:
    database = Database(
        target.conninfo, application_name="campaign-jobs command line", timeout_seconds=2 * STATEMENT_SECONDS
    )
    try:
        yield database
    finally:
        database.close()


def _rows(
    connection: Connection,
    *,
    ids: Sequence[UUID] | None = None,
    statuses: Sequence[str] | None = None,
    method: str | None = None,
    campaign_id: UUID | None = None,
    limit: int,
) -> list[dict[str, Any]]:
    return connection.execute(
        _LIST,
        {
            "ids": None if ids is None else list(ids),
            "statuses": None if statuses is None else list(statuses),
            "method": method,
            "campaign_id": campaign_id,
            "limit": limit,
        },
    ).fetchall()


def _counted(count: int) -> str:
    return "1 user reward" if count == 1 else f"{count:,} user rewards"
