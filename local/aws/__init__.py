"""The stand-in for SES and SQS: moto's server, which keeps every mail as a file that a person can open."""

from local.aws.account import AccountError, AccountSettings, Second
from local.aws.feedback import FeedbackError, FeedbackSettings
from local.aws.preparation import LocalQueue, catalog_queues, prepare
from local.aws.script import Answer, ScriptError, ScriptLine
from local.aws.stand_in import AwsStandIn

__all__ = [
    "AccountError",
    "AccountSettings",
    "Answer",
    "AwsStandIn",
    "FeedbackError",
    "FeedbackSettings",
    "LocalQueue",
    "ScriptError",
    "ScriptLine",
    "Second",
    "catalog_queues",
    "prepare",
]
