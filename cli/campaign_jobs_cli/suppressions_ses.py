"""SES's own suppression list, which all environments of an account and region share."""

from collections.abc import Iterator
from typing import Any

from campaign_jobs_cli.targets import Target


def reason_of_ses(target: Target, address: str) -> str | None:
    """Why SES suppresses an address for the whole account, BOUNCE or COMPLAINT; None where it does not."""
    ses = target.client("sesv2")
    for spelling in spellings(address):
        try:
            return str(
                ses.get_suppressed_destination(EmailAddress=spelling)["SuppressedDestination"]["Reason"]
            )
        except ses.exceptions.NotFoundException:
            continue
    return None


def listed(target: Target) -> Iterator[dict[str, Any]]:
    """All addresses on the list, a page at a time."""
    ses = target.client("sesv2")
    token: dict[str, str] = {}
    while True:
        page = ses.list_suppressed_destinations(PageSize=1_000, **token)
        for entry in page["SuppressedDestinationSummaries"]:
            yield {
                "address": entry["EmailAddress"],
                "list": "SES account",
                "reason": entry["Reason"].lower(),
                "created_at": entry["LastUpdateTime"],
            }
        if not page.get("NextToken"):
            return
        token = {"NextToken": page["NextToken"]}


def delete(target: Target, address: str) -> bool:
    """Take an address off the list; whether it was there."""
    ses, was_there = target.client("sesv2"), False
    for spelling in spellings(address):
        try:
            ses.delete_suppressed_destination(EmailAddress=spelling)
        except ses.exceptions.NotFoundException:
            continue
        was_there = True
    return was_there


def spellings(address: str) -> list[str]:
    """SES does not say whether case matters to its list, so both are looked up."""
    return list(dict.fromkeys((address, address.lower())))
