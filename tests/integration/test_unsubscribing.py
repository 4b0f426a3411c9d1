"""The unsubscribe links, from the mail to the row: over HTTP, with the function's own process and a real database."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import boto3
import psycopg
import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.ses import SesSender
from campaign_jobs.email.unsubscribing.keys import KeyRing
from campaign_jobs.email.unsubscribing.links import UnsubscribeLinks
from campaign_jobs.email.unsubscribing.token import sign
from campaign_jobs.errors import KeysUnavailable
from campaign_jobs.settings import UnsubscribeSettings
from campaign_jobs.worker.outcomes import Done, Skipped
from local.aws import AwsStandIn
from local.aws.mails import read_mails
from local.function_urls import FunctionUrl
from local.functions import PYTHON_PATH, REPOSITORY, Function, FunctionConfiguration
from tests.integration.email_campaign import DEFAULT_SENDER, MailCampaign
from tests.integration.reward_campaign import deadline

KEY, PREVIOUS, FOREIGN = "current-" * 8, "previous" * 8, "foreign-" * 8
ONE_CLICK = b"List-Unsubscribe=One-Click"
FORM = "application/x-www-form-urlencoded"
GONE = "postgresql://nobody@127.0.0.1:1/none"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    page: str


@dataclass
class Endpoint:
    """The function behind its URL, and what it logs."""

    url: FunctionUrl
    function: Function
    log_file: Path

    def request(
        self, method: str, token: str | None, body: bytes | None = None, *, path: str = "/unsubscribe"
    ) -> Answer:
        return self.send(method, path if token is None else f"{path}?token={quote(token, safe='')}", body)

    def send(
        self, method: str, target: str, body: bytes | None = None, *, content_type: str = FORM
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.url.port, timeout=60)
        try:
            connection.request(method, target, body, {} if body is None else {"Content-Type": content_type})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read().decode())
        finally:
            connection.close()

    @property
    def log(self) -> str:
        """All that it has logged. Ends the function, because its last lines may come after its answer."""
        self.function.close()
        return self.log_file.read_text(encoding="utf-8") if self.log_file.exists() else ""


Serve = Callable[..., Endpoint]


@pytest.fixture
def serve(tmp_path: Path, database_url: str) -> Iterator[Serve]:
    stops: list[Callable[[], object]] = []

    def start(**environment: str) -> Endpoint:
        function = Function(
            FunctionConfiguration(
                name=f"unsubscribe-{len(stops)}",
                handler=REPOSITORY / "functions" / "unsubscribe" / "handler.py",
                environment={"DATABASE_URL": database_url, "UNSUBSCRIBE_KEYS": KEY, **environment},
                timeout_seconds=30,
                memory_mb=256,
                log_dir=tmp_path,
            )
        )
        url = FunctionUrl(function)
        url.start()
        stops.extend([url.stop, function.close])
        return Endpoint(url, function, tmp_path / f"{function.name}.log")

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def endpoint(serve: Serve) -> Endpoint:
    return serve()


@pytest.fixture
def campaign(connection: Connection) -> MailCampaign:
    return MailCampaign(connection)


def unsubscribed(connection: Connection) -> list[uuid.UUID]:
    rows = connection.execute("SELECT user_id FROM campaign_jobs.email_unsubscribes ORDER BY user_id")
    return [row[0] for row in rows]


def token_of(user: uuid.UUID, key: str = KEY) -> str:
    return sign(user, key.encode())


@contextmanager
def counting_server() -> Iterator[tuple[str, list[int]]]:
    """A place that is no PostgreSQL, with the connections that it was asked for."""
    asked: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    client, address = server.accept()
                except OSError:
                    return
                asked.append(address[1])
                client.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        yield f"postgresql://nobody@127.0.0.1:{server.getsockname()[1]}/none?sslmode=disable", asked
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_opening_the_link_shows_a_button_and_changes_nothing(
    endpoint: Endpoint, campaign: MailCampaign
) -> None:
    token = token_of(campaign.add_user())
    page = endpoint.request("GET", token)
    assert page.status == 200
    assert "<h1>Unsubscribe?</h1>" in page.page
    assert '<form method="post"><button type="submit">Unsubscribe</button></form>' in page.page
    head = endpoint.request("HEAD", token)
    assert (head.status, head.page) == (200, "")
    assert unsubscribed(campaign.connection) == []


def test_the_button_unsubscribes_once_and_twice(endpoint: Endpoint, campaign: MailCampaign) -> None:
    user, other = campaign.add_user(), campaign.add_user()
    token = token_of(user)
    # A form without fields posts an empty body.
    first = endpoint.request("POST", token, b"")
    assert first.status == 200
    assert "<h1>You are unsubscribed</h1>" in first.page
    row = campaign.connection.execute("SELECT * FROM campaign_jobs.email_unsubscribes").fetchall()
    second = endpoint.request("POST", token, b"")
    assert (second.status, second.page) == (200, first.page)
    assert campaign.connection.execute("SELECT * FROM campaign_jobs.email_unsubscribes").fetchall() == row
    assert unsubscribed(campaign.connection) == [user] != [other]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, ONE_CLICK),
        (
            "multipart/form-data; boundary=---x",
            b'-----x\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n-----x--\r\n',
        ),
    ],
)
def test_a_mail_provider_unsubscribes_with_one_click(
    endpoint: Endpoint, campaign: MailCampaign, content_type: str, body: bytes
) -> None:
    """RFC 8058, section 3.2: without cookies, and no redirect."""
    user = campaign.add_user()
    answer = endpoint.send("POST", f"/unsubscribe?token={token_of(user)}", body, content_type=content_type)
    assert answer.status == 200
    assert unsubscribed(campaign.connection) == [user]


def test_a_page_brings_nothing_from_elsewhere_and_tells_nobody(endpoint: Endpoint) -> None:
    answer = endpoint.request("GET", token_of(uuid.uuid4()))
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    for part in ("default-src 'none'", "form-action 'self'", "frame-ancestors 'none'"):
        assert part in policy.split("; ")
    assert "://" not in answer.page and "src=" not in answer.page and "<script" not in answer.page


def bad_tokens() -> list[str | None]:
    good = token_of(uuid.uuid4())
    return [
        None,
        "",
        token_of(uuid.uuid4(), FOREIGN),
        good[:-1] + ("A" if good[-1] != "A" else "B"),
        good + "A",
        good + "\n",
        good + "\x00",
        f"{good},{good}",
        "ü" * 44,
        "<script>alert(1)</script>",
        "' OR 1=1 --",
        "A" * 44,
        "A" * 8000,
    ]


def test_what_is_no_token_of_ours_gets_nothing_and_costs_no_connection(
    serve: Serve, campaign: MailCampaign
) -> None:
    with counting_server() as (nowhere, asked):
        endpoint = serve(DATABASE_URL=nowhere)
        pages = set()
        for token in bad_tokens():
            for method in ("GET", "HEAD", "POST"):
                answer = endpoint.request(method, token, ONE_CLICK if method == "POST" else None)
                assert answer.status == 404
                if method != "HEAD":
                    pages.add(answer.page)
                assert not token or token not in answer.page
        assert len(pages) == 1, "the page must not tell one from another"
        good = token_of(campaign.add_user())
        for target in (
            f"/unsubscribe?token={good}&token={good}",
            f"/unsubscribe?TOKEN={good}",
            "/unsubscribe?token",
        ):
            assert endpoint.send("POST", target, ONE_CLICK).status == 404
        assert endpoint.request("GET", good).status == 200
        assert endpoint.request("HEAD", good).status == 200
        assert asked == []
        # And it would have been seen.
        assert endpoint.request("POST", good, ONE_CLICK).status == 503
        assert len(asked) >= 1


def test_other_methods_and_paths_are_not_there(serve: Serve) -> None:
    with counting_server() as (nowhere, asked):
        endpoint = serve(DATABASE_URL=nowhere)
        good = token_of(uuid.uuid4())
        for method in ("PUT", "PATCH", "DELETE", "OPTIONS"):
            answer = endpoint.request(method, good)
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, POST")
        for path in (
            "/",
            "/unsubscribe/",
            "/Unsubscribe",
            "/favicon.ico",
            "/unsubscribe/x",
            "//unsubscribe/",
        ):
            assert endpoint.request("POST", good, ONE_CLICK, path=path).status == 404
        assert asked == []


def test_a_user_who_is_no_longer_there_gets_the_same_answer(
    endpoint: Endpoint, campaign: MailCampaign
) -> None:
    there = endpoint.request("POST", token_of(campaign.add_user()), ONE_CLICK)
    gone = endpoint.request("POST", token_of(uuid.uuid4()), ONE_CLICK)
    assert (gone.status, gone.page) == (there.status, there.page) == (200, there.page)
    assert {*gone.headers} == {*there.headers}
    assert len(unsubscribed(campaign.connection)) == 1


@pytest.mark.parametrize("key", [KEY, PREVIOUS])
def test_all_keys_verify(serve: Serve, campaign: MailCampaign, key: str) -> None:
    user = campaign.add_user()
    endpoint = serve(UNSUBSCRIBE_KEYS=f"{KEY},{PREVIOUS}")
    assert endpoint.request("POST", token_of(user, key), ONE_CLICK).status == 200
    assert endpoint.request("POST", token_of(user, FOREIGN), ONE_CLICK).status == 404
    assert unsubscribed(campaign.connection) == [user]


def test_without_a_database_it_asks_to_try_again_and_says_so_to_operators(serve: Serve) -> None:
    endpoint = serve(DATABASE_URL=GONE)
    user = uuid.uuid4()
    token = token_of(user)
    answer = endpoint.request("POST", token, ONE_CLICK)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    # With the way to do so: a browser would only ask whether to send a form again.
    assert "try again" in answer.page
    question = endpoint.request("GET", token)
    assert question.status == 200
    (form,) = (line for line in question.page.splitlines() if line.startswith("<form"))
    assert form in answer.page
    lines = [json.loads(line) for line in endpoint.log.splitlines() if line.startswith("{")]
    assert [line["message"] for line in lines if line.get("level") == "ERROR"] == [
        "unsubscribing does not work now"
    ]
    assert [line["unavailable"] for line in lines if "unavailable" in line] == [[1.0]]
    assert token not in endpoint.log


def test_a_user_s_row_that_stays_locked_is_not_the_link_s_fault(
    endpoint: Endpoint, campaign: MailCampaign, database_url: str
) -> None:
    user = campaign.add_user()
    with psycopg.connect(database_url) as locking:
        locking.execute("SELECT FROM campaign_jobs.waitlist_users WHERE id = %s FOR UPDATE", (user,))
        assert endpoint.request("POST", token_of(user), ONE_CLICK).status == 503
        locking.rollback()
    assert endpoint.request("POST", token_of(user), ONE_CLICK).status == 200
    assert unsubscribed(campaign.connection) == [user]


def test_logs_know_ids_and_neither_addresses_nor_tokens(endpoint: Endpoint, campaign: MailCampaign) -> None:
    user = campaign.add_user()
    token = token_of(user)
    endpoint.request("GET", token)
    endpoint.request("POST", token, ONE_CLICK)
    assert str(user) in endpoint.log
    assert token not in endpoint.log
    assert campaign.address(user) not in endpoint.log
    counted = [json.loads(line) for line in endpoint.log.splitlines() if '"_aws"' in line]
    assert [name for line in counted for name in ("asked", "unsubscribed") if name in line] == [
        "asked",
        "unsubscribed",
    ]


def test_showing_the_page_loads_neither_boto3_nor_psycopg() -> None:
    code = """
import json, sys
import handler
event = json.loads(sys.argv[1])
assert handler.handler(event, None)["statusCode"] == 200
print([name for name in ("boto3", "psycopg", "pydantic", "jinja2") if name in sys.modules])
"""
    event = {
        "rawPath": "/unsubscribe",
        "queryStringParameters": {"token": token_of(uuid.uuid4())},
        "requestContext": {"http": {"method": "GET"}},
    }
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(event)],
        cwd=REPOSITORY / "functions" / "unsubscribe",
        env={"PYTHONPATH": f"{PYTHON_PATH}:.", "DATABASE_URL": GONE, "UNSUBSCRIBE_KEYS": KEY},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


# With the email job.


def job_of(database: Database, links: UnsubscribeLinks) -> EmailJob:
    sender = SesSender(pool_size=5, configuration_set=None)
    return EmailJob(database, sender, pool_size=5, default_sender=DEFAULT_SENDER, unsubscribe_links=links)


def test_the_link_of_a_mail_ends_three_types_and_leaves_two(
    endpoint: Endpoint, campaign: MailCampaign, database: Database, aws: AwsStandIn
) -> None:
    base = endpoint.url.url.rstrip("/")
    job = job_of(database, UnsubscribeLinks(base, KeyRing(lambda: (KEY.encode(),))))
    user, other = campaign.add_user(), campaign.add_user()
    assert job.process([campaign.asks("welcome", user)], deadline()) == [Done()]
    (mail,) = [m for m in read_mails(aws.mail_directory) if m.tags.get("campaign") == str(campaign.id)]
    link = mail.headers["List-Unsubscribe"].removeprefix("<").removesuffix(">")
    assert link in (aws.mail_directory / mail.text_file).read_text(encoding="utf-8-sig")
    assert link.startswith(f"{base}/unsubscribe?token=")
    target = urlsplit(link)
    assert endpoint.send("GET", f"{target.path}?{target.query}").status == 200
    assert unsubscribed(campaign.connection) == []
    one_click = mail.headers["List-Unsubscribe-Post"].encode()
    assert endpoint.send("POST", f"{target.path}?{target.query}", one_click).status == 200
    assert unsubscribed(campaign.connection) == [user]
    for person, wanted in ((user, Skipped("the user has unsubscribed")), (other, Done())):
        campaign.rank(person, 1)
        campaign.change_user(person, original_position=500 + (person == user))
        user_reward = campaign.earn(campaign.add_reward("email"), person)
        deliveries = [
            campaign.asks("welcome", person),
            campaign.asks("position_update", person),
            campaign.asks("milestone", person, milestone=5),
            campaign.asks("verification", person),
            campaign.asks("reward_earned", person, user_reward_id=str(user_reward)),
        ]
        outcomes = job.process(deliveries, deadline())
        assert outcomes == [wanted, wanted, wanted, Done(), Done()]


@pytest.fixture
def secret(aws: AwsStandIn) -> str:
    """The ARN of a secret as the stack makes it: one key."""
    client = boto3.client("secretsmanager")
    made = client.create_secret(Name=f"unsubscribe-keys-{uuid.uuid4()}", SecretString=PREVIOUS)
    return str(made["ARN"])


def settings_with(secret: str) -> UnsubscribeSettings:
    return UnsubscribeSettings.load({"DATABASE_URL": GONE, "UNSUBSCRIBE_KEYS_SECRET_ARN": secret})


def test_keys_come_from_a_secret_and_are_rotated_in_it(aws: AwsStandIn, secret: str) -> None:
    now = [1000.0]
    ring = KeyRing(KeyRing.from_settings(settings_with(secret))._read, clock=lambda: now[0])
    assert ring.current() == (PREVIOUS.encode(),)
    boto3.client("secretsmanager").put_secret_value(SecretId=secret, SecretString=f"{KEY},{PREVIOUS}")
    assert ring.current() == (PREVIOUS.encode(),)
    now[0] += 3600
    assert ring.current() == (KEY.encode(), PREVIOUS.encode())


@pytest.mark.parametrize("content", [None, "too short", f"{'k' * 64},"])
def test_keys_that_cannot_be_read_stop_the_batch_and_spend_nothing(
    campaign: MailCampaign, database: Database, aws: AwsStandIn, secret: str, content: str | None
) -> None:
    if content is None:
        secret = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:nowhere"
    else:
        boto3.client("secretsmanager").put_secret_value(SecretId=secret, SecretString=content)
    links = UnsubscribeLinks("https://x.example", KeyRing.from_settings(settings_with(secret)))
    job = job_of(database, links)
    verification, welcome = (
        campaign.asks(type_, campaign.add_user()) for type_ in ("verification", "welcome")
    )
    with pytest.raises(KeysUnavailable) as caught:
        job.process([verification, welcome], deadline())
    assert content is None or content not in str(caught.value)
    assert campaign.statuses() == {}
    # What needs no key goes on in a batch of its own.
    assert job.process([verification], deadline()) == [Done()]
