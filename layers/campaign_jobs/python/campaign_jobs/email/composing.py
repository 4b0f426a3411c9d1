"""From a loaded event to the mail that SES is given."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from campaign_jobs.email.decisions import UNSUBSCRIBABLE
from campaign_jobs.email.rendering import Template, built_in, render
from campaign_jobs.email.ses import Mail
from campaign_jobs.email.store import Loaded
from campaign_jobs.email.tags import MESSAGE_TAG, message_tag
from campaign_jobs.email.unsubscribing.links import UnsubscribeLinks, one_click_headers
from campaign_jobs.errors import CampaignJobsError
from campaign_jobs.events import EmailEvent


class CannotCompose(CampaignJobsError):
    """A mail lacks something that only a change of the data or the settings can bring."""


class Templates:
    """The templates that apply to a batch: one named by the event, the campaign's, the default, the built-in."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._by_id = {row["id"]: row for row in rows}
        self._enabled = {(row["campaign_id"], row["type"]): row for row in rows if row["applies"]}

    def for_event(self, event: EmailEvent) -> Template:
        """Raises CannotCompose when the event names a template that is not there for it."""
        payload = event.data
        if payload.template_id is not None:
            row = self._by_id.get(payload.template_id)
            if (
                row is None
                or row["type"] != payload.type
                or row["campaign_id"] not in (None, payload.campaign_id)
            ):
                raise CannotCompose(
                    f"template {payload.template_id} is not a {payload.type} template of this campaign"
                )
            return _template(row)
        row = self._enabled.get((payload.campaign_id, payload.type)) or self._enabled.get(
            (None, payload.type)
        )
        return built_in(payload.type) if row is None else _template(row)


def compose(
    loaded: Loaded,
    templates: Templates,
    *,
    default_sender: str,
    default_base_url: str | None,
    unsubscribe_links: UnsubscribeLinks,
) -> Mail:
    """Render one mail. Raises TemplateError or CannotCompose, and KeysUnavailable, which stops the batch."""
    row = loaded.row
    payload = loaded.event.data
    unsubscribe_url = unsubscribe_links.url(payload.user_id) if payload.type in UNSUBSCRIBABLE else ""
    context = {
        **_context(loaded, row["public_base_url"] or default_base_url),
        "unsubscribe_url": unsubscribe_url,
    }
    return Mail(
        sender_name=_one_line(row["from_name"] or row["campaign_name"]),
        sender=row["from_email"] or default_sender,
        foreign_sender=_domain(row["from_email"] or default_sender) != _domain(default_sender),
        reply_to=row["reply_to"],
        recipient=row["email"],
        content=render(templates.for_event(loaded.event), context),
        tags={
            "type": payload.type,
            "campaign": str(payload.campaign_id),
            MESSAGE_TAG: message_tag(loaded.event.id),
        },
        headers=one_click_headers(unsubscribe_url) if unsubscribe_url else {},
    )


VERIFY_PATH: Final = "/verify?token="
REFERRAL_PATH: Final = "/?ref="


def _context(loaded: Loaded, base_url: str | None) -> dict[str, object]:
    row = loaded.row
    payload = loaded.event.data
    verification_url = ""
    if payload.type == "verification":
        if base_url is None:
            raise CannotCompose("the campaign has no public_base_url and DEFAULT_PUBLIC_BASE_URL is not set")
        if row["verification_token"] is None:
            raise CannotCompose("the user has no verification_token to build the link from")
        verification_url = _link(base_url, VERIFY_PATH, row["verification_token"])
    referral_url = (
        _link(base_url, REFERRAL_PATH, row["referral_code"]) if base_url and row["referral_code"] else ""
    )
    return {
        "campaign_name": row["campaign_name"],
        "user_first_name": row["first_name"] or "",
        "user_email": row["email"],
        "verification_url": verification_url,
        "position": row["position"],
        "previous_position": loaded.state.last_notified_position
        if payload.type == "position_update"
        else None,
        "original_position": row["original_position"],
        "referral_url": referral_url,
        "referral_count": row["verified_referrals"] or 0,
        "reward_name": row["reward_name"] or "",
        "reward_description": row["reward_description"] or "",
        "reward_data": row["reward_data"] or {},
        "milestone": payload.milestone,
        "data": payload.template_data,
    }


def _one_line(name: str) -> str:
    # A campaign's name may hold anything, and stands in a header here.
    return " ".join("".join(character if character.isprintable() else " " for character in name).split())


def _domain(address: str) -> str:
    return address.rpartition("@")[2].lower()


def _link(base_url: str, path: str, value: str) -> str:
    return base_url.rstrip("/") + path + quote(value, safe="")


def _template(row: Mapping[str, Any]) -> Template:
    scope = f"campaign {row['campaign_id']}" if row["campaign_id"] else "default"
    return Template(
        name=f"{scope} {row['type']} v{row['version']}",
        subject=row["subject"],
        html=row["html"],
        text=row["text"],
    )
