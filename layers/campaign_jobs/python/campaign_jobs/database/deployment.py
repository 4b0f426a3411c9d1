"""Migrations as a part of a deployment: a custom resource of CloudFormation, which waits for our answer.

The deployment names the last migration that it wants. Whoever is asked for fewer than it has is looking at a rollback,
and leaves the schema alone: each release's code works with the next one's schema. Deleting the stack changes nothing
either.

https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/crpg-ref.html
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.request import Request, urlopen

from campaign_jobs.database import migrations
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.observability import logger_of

SERVICE: Final = "migrations"
ANSWERING_SECONDS: Final = 30
"""What is kept back of an invocation for telling CloudFormation how it ended."""
_SCHEMA: Final = "campaign-jobs-schema"
_REASON_CHARACTERS: Final = 1_000

Respond = Callable[[str, Mapping[str, Any]], None]


class NotDeployedYet(CampaignJobsError):
    """The function's code does not have a migration that the deployment wants."""


def deploy(
    event: Mapping[str, Any],
    *,
    conninfo: Callable[[], str],
    seconds: float,
    log_stream: str,
    respond: Respond | None = None,
) -> list[str]:
    """Answer one request of CloudFormation and return the names of the migrations that were applied.

    `seconds` is what is left of the invocation. Whatever goes wrong is the answer, too, since the deployment waits for
    one; then it is raised.
    """
    respond = respond or put_response
    logger = logger_of(SERVICE)
    answer = {
        "PhysicalResourceId": _SCHEMA,
        "StackId": event["StackId"],
        "RequestId": event["RequestId"],
        "LogicalResourceId": event["LogicalResourceId"],
    }
    try:
        applied = _apply(event, conninfo, max(1.0, seconds - ANSWERING_SECONDS))
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {first_line}"[:_REASON_CHARACTERS]
        logger.error("migrating failed", extra={"reason": reason})
        respond(
            event["ResponseURL"], {**answer, "Status": "FAILED", "Reason": f"{reason} (log {log_stream})"}
        )
        raise
    logger.info("migrated", extra={"request": event["RequestType"], "applied": applied})
    latest = migrations.names()[-1]
    respond(event["ResponseURL"], {**answer, "Status": "SUCCESS", "Data": {"Latest": latest}})
    return applied


def _apply(event: Mapping[str, Any], conninfo: Callable[[], str], seconds: float) -> list[str]:
    if event["RequestType"] == "Delete":
        return []
    wanted, ours = str(event["ResourceProperties"]["Latest"]), migrations.names()
    if wanted not in ours:
        raise NotDeployedYet(
            f"the migration {wanted} is not among those of this function, whose last is {ours[-1]}"
        )
    if wanted != ours[-1]:
        return []
    milliseconds = int(seconds * 1000)
    return migrations.apply(
        conninfo(),
        options=f"-c statement_timeout={milliseconds}",
        connect_timeout="10",
    )


def put_response(url: str, answer: Mapping[str, Any]) -> None:
    """To the place in S3 that CloudFormation reads."""
    # The signature in the URL covers an empty content type.
    request = Request(url, json.dumps(answer).encode(), {"Content-Type": ""}, method="PUT")  # noqa: S310
    with urlopen(request, timeout=ANSWERING_SECONDS / 2):  # noqa: S310  The URL is CloudFormation's.
        pass
