"""Records what SES tells of the mails that it has taken."""

from typing import Any

from campaign_jobs.database.connection import Database
from campaign_jobs.email.feedback import Feedback
from campaign_jobs.settings import FeedbackSettings

feedback = Feedback(
    Database.from_settings(FeedbackSettings.load(), application_name="campaign-jobs-feedback")
)


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    return feedback.handle(event)
