"""How close functions that send side by side come to the rate that they are allowed together, and whether they keep it.

    python benchmarks/sending.py [--rate 50] [--seconds 20] [--functions 1,2,4,8]

Starts PostgreSQL and the SES stand-in in a temporary directory, and the email function as processes of its own. Each
round has the mails that the rate lets out in its time. Time is the database's clock, from a second after the first
recorded mail to the last one.
"""

import argparse
import json
import sys
import tempfile
import time
import uuid
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import psycopg

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "layers" / "campaign_jobs" / "python")]

from campaign_jobs.catalog import EMAIL
from campaign_jobs.database import migrations
from campaign_jobs.database.connection import Connection
from local.aws import AccountSettings, AwsStandIn, prepare
from local.functions import Function, FunctionConfiguration
from local.postgres import PostgresServer

DOMAIN = "mail.example.com"
LANE = EMAIL.lanes[0]
CAMPAIGN = uuid.UUID(int=1)

USERS = """
INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position)
SELECT md5(%(round)s || ' user ' || n)::uuid, %(campaign)s, %(round)s || '-person' || n || '@example.org',
       n + (SELECT count(*) FROM campaign_jobs.waitlist_users)
FROM generate_series(1, %(count)s) AS n
RETURNING id
"""

# The first second is that of the bucket's own content and of the cold starts.
REACHED = """
SELECT count(*) FILTER (WHERE accepted_at > first.at + interval '1 second'),
       extract(epoch FROM max(accepted_at) - min(first.at) - interval '1 second')::double precision
FROM campaign_jobs.email_messages,
     (SELECT min(accepted_at) AS at FROM campaign_jobs.email_messages
      WHERE status = 'accepted' AND event_id LIKE %(round)s) AS first
WHERE status = 'accepted' AND event_id LIKE %(round)s
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--functions", default="1,2,4,8")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sending-") as directory:
        path = Path(directory)
        account = AccountSettings(max_send_rate=arguments.rate)
        with (
            PostgresServer(path / "data") as postgres,
            AwsStandIn(path / "mails", account=account) as aws,
        ):
            url = postgres.create_database("benchmark")
            migrations.apply(url)
            queue_urls = prepare(client(aws, "sesv2"), client(aws, "sqs"), [DOMAIN])
            print(f"{'functions':>9} {'mails/s':>8} {'of the rate':>12} {'most in a second':>17}")
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    "INSERT INTO campaign_jobs.campaigns (id, name) VALUES (%s, 'Launch')", (CAMPAIGN,)
                )
                for functions in map(int, arguments.functions.split(",")):
                    configuration = FunctionConfiguration(
                        name="email",
                        handler=REPOSITORY / "functions" / "email" / "handler.py",
                        environment={
                            **{name: url for name, url in queue_urls.items() if "EMAIL" in name},
                            "DATABASE_URL": url,
                            "DEFAULT_SENDER": f"hello@{DOMAIN}",
                            "UNSUBSCRIBE_URL": f"https://{DOMAIN}",
                            "UNSUBSCRIBE_KEYS": "a key of at least thirty-two bytes",
                        },
                        timeout_seconds=EMAIL.timeout_seconds,
                        memory_mb=EMAIL.memory_mb,
                        log_dir=path,
                        aws_endpoint_url=aws.endpoint_url,
                    )
                    with Function(configuration, max_concurrency=functions) as function:
                        name = f"{functions}x{uuid.uuid4().hex[:6]}"
                        count = round(arguments.rate * (arguments.seconds + 1) / functions) * functions
                        events = batches(connection, name, count, functions)
                        before = {second.second for second in aws.seconds()}
                        with ThreadPoolExecutor(functions) as pool:
                            list(pool.map(function.alias(LANE.name).invoke, events))
                    most = max(second.accepted for second in aws.seconds() if second.second not in before)
                    reached = reached_rate(connection, name)
                    ratio, peak = reached / arguments.rate, most / arguments.rate
                    print(f"{functions:>9} {reached:>8.1f} {ratio:>12.3f} {peak:>15.2f} x", flush=True)


def batches(connection: Connection, name: str, count: int, functions: int) -> list[dict[str, Any]]:
    """Invocations for so many functions, with `count` mails of this round among them."""
    users = connection.execute(USERS, {"round": name, "campaign": CAMPAIGN, "count": count}).fetchall()
    mails = [(f"{name}-{place}", user) for place, (user,) in enumerate(users)]
    return [batch(mails[start::functions]) for start in range(functions)]


def reached_rate(connection: Connection, name: str) -> float:
    row = connection.execute(REACHED, {"round": f"{name}-%"}).fetchone()
    assert row is not None
    return float(row[0] / row[1])


def batch(mails: list[tuple[str, Any]]) -> dict[str, Any]:
    """Kafka's event with a welcome mail for each."""
    values = [
        {
            "id": event_id,
            "type": "job.email.welcome",
            "data": {"type": "welcome", "campaign_id": str(CAMPAIGN), "user_id": str(user)},
        }
        for event_id, user in mails
    ]
    records = [
        {
            "topic": "job-events",
            "partition": 0,
            "offset": offset,
            "timestamp": int(time.time() * 1000),
            "value": b64encode(json.dumps(value).encode()).decode(),
        }
        for offset, value in enumerate(values)
    ]
    return {"eventSource": "aws:kafka", "records": {"job-events-0": records}}


def client(aws: AwsStandIn, service: str) -> Any:
    return boto3.client(
        service,  # type: ignore[call-overload]
        endpoint_url=aws.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )


if __name__ == "__main__":
    main()
