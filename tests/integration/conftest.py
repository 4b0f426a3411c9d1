"""One stand-in of SES and SQS for the tests that only use it; those of the stand-in itself start their own."""

from collections.abc import Iterator

import boto3
import pytest

from local.aws import AccountSettings, AwsStandIn, prepare

SENDER_DOMAIN = "mail.example.com"


@pytest.fixture(scope="session")
def _stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsStandIn]:
    with AwsStandIn(tmp_path_factory.mktemp("aws") / "mails") as stand_in:
        yield stand_in


@pytest.fixture
def aws(_stand_in: AwsStandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsStandIn]:
    """SES and SQS for whatever makes a boto3 client from the environment; SES accepts all of SENDER_DOMAIN."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", _stand_in.endpoint_url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    prepare(boto3.client("sesv2"), boto3.client("sqs"), [SENDER_DOMAIN], [])
    yield _stand_in
    _stand_in.play([])
    _stand_in.set_account(AccountSettings())
