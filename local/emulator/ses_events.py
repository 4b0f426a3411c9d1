"""SES's reports on the default event bus, which ministack lacks. It runs in ministack's process."""

import json
from typing import Any

from ministack.core.responses import get_region
from ministack.services import eventbridge, ses_v2

from local.emulator.backing_client import ask_backing

_answer_request = ses_v2.handle_request


def install() -> None:
    """Report each mail that is accepted to the event destinations of its configuration set."""
    ses_v2.handle_request = _answer_and_report


async def _answer_and_report(
    method: str, path: str, headers: Any, body: bytes, query_parameters: Any
) -> tuple[int, Any, bytes]:
    answer: tuple[int, Any, bytes] = await _answer_request(method, path, headers, body, query_parameters)
    if method == "POST" and path.endswith("/outbound-emails") and answer[0] == 200:
        _report(json.loads(body), json.loads(answer[2])["MessageId"])
    return answer


def _report(request: dict[str, Any], message_id: str) -> None:
    wanted = _wanted_event_types(request.get("ConfigurationSetName"))
    if not wanted:
        return
    answer = ask_backing("POST", f"reports/{message_id}", {**request, "region": get_region()})
    entries = [
        {
            "Source": event["source"],
            "DetailType": event["detail-type"],
            "Resources": event["resources"],
            "Detail": json.dumps(event["detail"]),
        }
        for event in answer["events"]
        if event["detail"]["eventType"].upper() in wanted
    ]
    eventbridge._put_events({"Entries": entries}, allow_aws_source=True)


def _wanted_event_types(configuration_set: str | None) -> set[str]:
    destinations = (ses_v2._config_sets.get(configuration_set) or {}).get("EventDestinations") or {}
    return {
        event_type
        for destination in destinations.values()
        if destination["Enabled"] and "EventBridgeDestination" in destination
        for event_type in destination["MatchingEventTypes"]
    }
