"""The migrations make the schema from nothing, once."""

import pytest

from campaign_jobs.database import migrations
from campaign_jobs.database.connection import Connection
from local.postgres import PostgresServer


def test_migrating_twice_applies_nothing_the_second_time(
    postgres_server: PostgresServer, database_url: str
) -> None:
    assert migrations.apply(database_url) == []


def test_one_mailbox_has_one_normalized_address(connection: Connection) -> None:
    variants = ["John.Doe+x@GMail.com", "johndoe@googlemail.com", " johndoe@gmail.com "]
    row = connection.execute(
        "SELECT array_agg(DISTINCT campaign_jobs.normalize_email(address)) FROM unnest(%s::text[]) AS address",
        [variants],
    ).fetchone()
    assert row == (["johndoe@gmail.com"],)
    row = connection.execute("SELECT campaign_jobs.normalize_email('A.b+c@Example.org')").fetchone()
    assert row == ("a.b@example.org",)


@pytest.mark.parametrize(
    ("address", "normalized"),
    [
        ("+x@corp.example", "+x@corp.example"),
        ("+Y@corp.example", "+y@corp.example"),
        ("a+b+c@corp.example", "a@corp.example"),
        ("...@gmail.com", "...@gmail.com"),
        (".+x@googlemail.com", ".+x@gmail.com"),
        ("+a.b@gmail.com", "+a.b@gmail.com"),
    ],
)
def test_what_makes_no_difference_is_never_the_whole_name(
    connection: Connection, address: str, normalized: str
) -> None:
    row = connection.execute("SELECT campaign_jobs.normalize_email(%s)", (address,)).fetchone()
    assert row == (normalized,)
