"""The migrations make the schema from nothing, once."""

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
