"""The values that an email template is given, and made-up ones to preview and validate it with."""

from collections.abc import Mapping
from typing import Final

from campaign_jobs.errors import TemplateError

EMAIL_TYPES: Final = ("verification", "welcome", "position_update", "reward_earned", "milestone")

NOTHING: Final[Mapping[str, object]] = {
    "campaign_name": "",
    "user_first_name": "",
    "user_email": "",
    "verification_url": "",
    "position": None,
    "previous_position": None,
    "original_position": None,
    "referral_url": "",
    "referral_count": 0,
    "reward_name": "",
    "reward_description": "",
    "reward_data": {},
    "milestone": None,
    "unsubscribe_url": "",
    "data": {},
}
"""Every value that a template is given, as it is where there is nothing to tell."""

_MINIMUM: Final[Mapping[str, object]] = {
    "campaign_name": "Acme",
    "user_email": "ada@example.com",
    "original_position": 55,
}
_MINIMUM_OF_TYPE: Final[Mapping[str, Mapping[str, object]]] = {
    "verification": {"verification_url": "https://example.com/verify?token=a1b2c3"},
    "welcome": {},
    "position_update": {"position": 42, "previous_position": 55},
    "reward_earned": {"reward_name": "Early access"},
    "milestone": {"milestone": 10},
}
_SAMPLE: Final[Mapping[str, object]] = {
    "campaign_name": "Lumen Notebook",
    "user_first_name": "Ada",
    "user_email": "ada@example.com",
    "position": 42,
    "original_position": 1_255,
    "referral_url": "https://example.com/r/ada-k7x2",
    "referral_count": 10,
    "unsubscribe_url": "https://example.com/unsubscribe?token=a1b2c3",
}
_SAMPLE_OF_TYPE: Final[Mapping[str, Mapping[str, object]]] = {
    "verification": {"position": None, "referral_count": 0, "unsubscribe_url": ""},
    "welcome": {"position": 1_255, "referral_count": 0},
    "position_update": {"previous_position": 55},
    "reward_earned": {
        "reward_name": "Three months free",
        "reward_description": "Lumen Notebook Plus, on us. Enter the code when you create your account.",
        "reward_data": {"code": "LUMEN-ADA-2025"},
        "unsubscribe_url": "",
    },
    "milestone": {"milestone": 10},
}


def sample_context(email_type: str) -> dict[str, object]:
    """What a mail of this type is typically given, made up."""
    check_type(email_type)
    return {
        **NOTHING,
        **_MINIMUM_OF_TYPE[email_type],
        **_SAMPLE,
        **_SAMPLE_OF_TYPE[email_type],
    }


def minimum_context(email_type: str) -> dict[str, object]:
    """The least that a mail of this type is given, made up: no first name, no link that might be missing."""
    check_type(email_type)
    return {**NOTHING, **_MINIMUM, **_MINIMUM_OF_TYPE[email_type]}


def check_type(email_type: str) -> None:
    if email_type not in EMAIL_TYPES:
        raise TemplateError(f"there is no email type {email_type!r}; the types are {', '.join(EMAIL_TYPES)}")
