"""Records what SES tells of the mails that it has taken."""

from typing import Any

from campaign_jobs.catalog import FEEDBACK
from campaign_jobs.database.connection import Database
from campaign_jobs.email.feedback import Feedback
from campaign_jobs.settings import FeedbackSettings
from campaign_jobs.worker.delivery import ANSWERING_SECONDS, Deadline
from campaign_jobs.worker.pipeline import LambdaContext

database = Database.from_settings(
    FeedbackSettings.load(),
    application_name="campaign-jobs-feedback",
    timeout_seconds=FEEDBACK.timeout_seconds,
)
feedback = Feedback(database)


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    with database.within(
        Deadline.of_invocation(context.get_remaining_time_in_millis).earlier(ANSWERING_SECONDS)
    ):
        return feedback.handle(event)
