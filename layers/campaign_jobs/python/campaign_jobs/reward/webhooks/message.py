"""The body of a reward's webhook."""

import json
from datetime import UTC, datetime
from typing import Any, Final

from campaign_jobs.reward.decisions import UserReward

EVENT_TYPE: Final = "reward.earned"


def body_of(user_reward: UserReward) -> bytes:
    """The JSON that an endpoint receives, the same bytes at every attempt unless a service changed the rows.

    `type` and `timestamp` (when the reward was earned) stand where Standard Webhooks wants them.
    """
    message: dict[str, Any] = {
        "type": EVENT_TYPE,
        "timestamp": _as_text(user_reward.earned_at),
        "data": {
            "user_reward_id": str(user_reward.id),
            "campaign_id": str(user_reward.campaign_id),
            "occurrence": user_reward.occurrence,
            "expires_at": None if user_reward.expires_at is None else _as_text(user_reward.expires_at),
            "reward": {
                "id": str(user_reward.reward_id),
                "name": user_reward.reward_name,
                "type": user_reward.reward_type,
            },
            "user": {"id": str(user_reward.user_id), "email": user_reward.user_email},
            "data": user_reward.data,
        },
    }
    return json.dumps(message, separators=(",", ":"), sort_keys=True).encode()


def _as_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
