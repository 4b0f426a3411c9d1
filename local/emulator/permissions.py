"""What functions may do is what their roles say; whoever deploys may do everything. It runs in ministack's process."""

from typing import Any

from ministack import app
from ministack.core import iam_evaluator, lambda_runtime
from ministack.core.responses import get_account_id
from ministack.services import msk, ses_v2

_issued: set[str] = set()
_credentials_of = lambda_runtime.execution_credentials
_enforce = iam_evaluator.enforce


def install() -> None:
    """ministack would check every caller (AUTH=true), but does not know all conditions of the CDK's bootstrap roles."""
    lambda_runtime.execution_credentials = _issue_credentials
    iam_evaluator.enforce = _enforce_on_functions
    # Queues refuse requests without TLS, which would gain nothing within this machine.
    app.pin_request_origin = lambda address, secure: iam_evaluator.pin_request_origin(address, True)


def _issue_credentials(configuration: dict[str, Any]) -> dict[str, str]:
    credentials: dict[str, str] = _credentials_of(configuration)
    _issued.add(credentials["AWS_ACCESS_KEY_ID"])
    return credentials


def _enforce_on_functions(
    access_key_id: str, action: str, service: str, region: str, resource_arn: str = "*", **more: Any
) -> Any:
    if access_key_id not in _issued:
        return None
    # "To get permissions for SendMessageBatch, set sqs:SendMessage": a batch has no permission of its own.
    action = action.removesuffix("Batch") if service == "sqs" else action
    resources = _named_by_the_request(action, region) or [resource_arn]
    denials = [_enforce(access_key_id, action, service, region, resource, **more) for resource in resources]
    return next((denied for denied in denials if denied), None)


def _named_by_the_request(action: str, region: str) -> list[str]:
    """What ministack does not see in a request, in an account that has one of each; nothing for other requests."""
    if action.startswith("kafka:"):
        return list(msk._clusters)
    if action == "ses:SendEmail":
        prefix = f"arn:aws:ses:{region}:{get_account_id()}"
        return [
            *(f"{prefix}:identity/{name}" for name in ses_v2._identities),
            *(f"{prefix}:configuration-set/{name}" for name in ses_v2._config_sets),
        ]
    return []
