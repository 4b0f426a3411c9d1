"""Answers the unsubscribe links of our mails, at a function URL."""

from typing import Any

from campaign_jobs.email.unsubscribing.endpoint import UnsubscribeEndpoint
from campaign_jobs.settings import UnsubscribeSettings

endpoint = UnsubscribeEndpoint(UnsubscribeSettings.load())


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    return endpoint.handle(event)
