"""The function `unsubscribe` at its boundaries: a click that nobody answered is clicked again."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

from campaign_jobs.database.connection import Connection
from tests.crash.scenario import Rest, Scenario
from tests.integration.email_campaign import UNSUBSCRIBE_LINKS, MailCampaign


def _click(connection: Connection) -> list[Any]:
    url = urlsplit(UNSUBSCRIBE_LINKS.url(MailCampaign(connection).add_user()))
    return [
        {
            "rawPath": url.path,
            "queryStringParameters": {name: values[0] for name, values in parse_qs(url.query).items()},
            "requestContext": {"http": {"method": "POST"}},
            "body": "List-Unsubscribe=One-Click",
        }
    ]


def _unsubscribed(rest: Rest) -> None:
    assert rest.rows("SELECT count(*) FROM campaign_jobs.email_unsubscribes") == [(1,)]


SCENARIOS = [
    Scenario(
        name="unsubscribe: a click",
        function="unsubscribe",
        source="own queue",
        seed=_click,
        expect=_unsubscribed,
    )
]
