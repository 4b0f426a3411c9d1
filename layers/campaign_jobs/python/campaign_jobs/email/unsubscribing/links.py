"""The link under a mail, and the headers that let mail programs use it with one click."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from campaign_jobs.email.unsubscribing.keys import KeyRing
from campaign_jobs.email.unsubscribing.token import sign

PATH: Final = "/unsubscribe"
PARAMETER: Final = "token"


@dataclass(frozen=True)
class UnsubscribeLinks:
    """Makes the links, which begin with `base_url`."""

    base_url: str
    keys: KeyRing

    def url(self, user_id: UUID) -> str:
        """Raises KeysUnavailable."""
        return f"{self.base_url}{PATH}?{PARAMETER}={sign(user_id, self.keys.current()[0])}"


def one_click_headers(url: str) -> Mapping[str, str]:
    """RFC 8058, section 3.1. A mail's DKIM signature must cover both; SES signs after they are there."""
    return {"List-Unsubscribe": f"<{url}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
