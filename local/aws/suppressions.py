"""SES's suppression list of the account, which moto does not play. It only answers: SES sends to whoever is on it.

Shapes: the SES API v2 reference, PutSuppressedDestination, GetSuppressedDestination, DeleteSuppressedDestination and
ListSuppressedDestinations.
"""

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote

PATH: Final = "/v2/email/suppression/addresses"
_PAGE: Final = 1_000

Answer = tuple[str, dict[str, Any], list[tuple[str, str]]]


@dataclass
class SuppressionList:
    """Safe to use from several threads."""

    _entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, method: str, path: str, query: str, body: bytes) -> Answer:
        """Status, JSON and further headers of one request below PATH."""
        address = unquote(path.removeprefix(PATH).lstrip("/"))
        with self._lock:
            if method == "PUT" and not address:
                return self._put(json.loads(body))
            if method == "GET" and not address:
                return self._page(parse_qs(query))
            if address not in self._entries:
                message = f"Email address {address} does not exist on your suppression list."
                return "404 NOT FOUND", {"message": message}, [("x-amzn-ErrorType", "NotFoundException")]
            if method == "DELETE":
                del self._entries[address]
                return "200 OK", {}, []
            return "200 OK", {"SuppressedDestination": self._entries[address]}, []

    def _put(self, request: dict[str, Any]) -> Answer:
        if request.get("Reason") not in ("BOUNCE", "COMPLAINT"):
            refused = [("x-amzn-ErrorType", "BadRequestException")]
            return "400 BAD REQUEST", {"message": "Reason must be BOUNCE or COMPLAINT."}, refused
        address = request["EmailAddress"]
        self._entries[address] = {
            "EmailAddress": address,
            "Reason": request["Reason"],
            "LastUpdateTime": time.time(),
        }
        return "200 OK", {}, []

    def _page(self, query: dict[str, list[str]]) -> Answer:
        begin = int(query.get("NextToken", ["0"])[0])
        end = begin + int(query.get("PageSize", [str(_PAGE)])[0])
        listed = list(self._entries.values())
        answer: dict[str, Any] = {"SuppressedDestinationSummaries": listed[begin:end]}
        if end < len(listed):
            answer["NextToken"] = str(end)
        return "200 OK", answer, []
