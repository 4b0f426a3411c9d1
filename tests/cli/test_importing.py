"""People from a CSV file: all of it or nothing, each error with its line, the same file twice."""

import csv
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.events import parse
from campaign_jobs.position.run import recalculate
from campaign_jobs_cli import importing, targets
from campaign_jobs_cli.import_reading import PeopleFile
from campaign_jobs_cli.import_writing import Import
from tests.cli.conftest import Command
from tests.integration.position_campaign import LAUNCH, Campaign


@pytest.fixture
def campaign(connection: Connection) -> Campaign:
    return Campaign(connection)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "people.csv"


def write(file: Path, header: str, *lines: str) -> Path:
    file.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return file


def people(
    connection: Connection, columns: str = "email, status, original_position"
) -> list[tuple[Any, ...]]:
    return connection.execute(
        f"SELECT {columns} FROM campaign_jobs.waitlist_users ORDER BY original_position"
    ).fetchall()


def mails(connection: Connection) -> list[tuple[str, str]]:
    rows = connection.execute("SELECT event, partition_key FROM campaign_jobs.outbox ORDER BY id").fetchall()
    for event, _ in rows:
        parse(event, recorded_at=LAUNCH)  # by the contract
    return [(event["type"], key) for event, key in rows]


def test_people_come_with_their_referrals_and_positions(
    command: Command, campaign: Campaign, connection: Connection, file: Path, database: Database
) -> None:
    write(
        file,
        "email,first_name,referral_code,referred_by,verified_at,created_at",
        "ada@example.org,Ada,ADA,,2025-01-02T10:00:00Z,2025-01-01T10:00:00+02:00",
        "bob@example.org,,,ADA,2025-01-03 10:00:00,2025-01-02T10:00:00Z",
        "CAROL@example.org,Carol,,Bob@Example.org,,",
    )
    printed = command("import", file, "--campaign", campaign.id, "--yes", "--output", "json")
    assert printed.code == 0, printed.err
    assert printed.json["written"] == {
        "people": 3,
        "referrals": 2,
        "verification_mails": 0,
        "welcome_mails": 0,
    }
    assert people(connection) == [
        ("ada@example.org", "verified", 1),
        ("bob@example.org", "verified", 2),
        ("CAROL@example.org", "pending", 3),
    ]
    assert connection.execute(
        "SELECT referrer.email, referred.email, referral.status, referral.created_at = referred.created_at,"
        " referred.referred_by_id = referrer.id FROM campaign_jobs.referrals AS referral"
        " JOIN campaign_jobs.waitlist_users AS referrer ON referrer.id = referrer_id"
        " JOIN campaign_jobs.waitlist_users AS referred ON referred.id = referred_id"
        " ORDER BY referred.original_position"
    ).fetchall() == [
        ("ada@example.org", "bob@example.org", "verified", True, True),
        ("bob@example.org", "CAROL@example.org", "pending", True, True),
    ]
    assert mails(connection) == [], "nobody is written to unasked"
    assert "analytics backfill --from 2025-01-01T08:00:00Z" in printed.err
    assert campaign.waiting() == 2, "one statement of users and one of referrals"
    run = recalculate(database, campaign.id)
    assert run is not None and run.ranked
    ranked = connection.execute(
        "SELECT position, score FROM campaign_jobs.user_positions ORDER BY 1"
    ).fetchall()
    assert ranked == [(1, 0), (2, 2), (3, 3)]


def test_nothing_is_written_unless_somebody_says_so(
    command: Command, campaign: Campaign, connection: Connection, file: Path
) -> None:
    write(file, "email", "ada@example.org")
    printed = command("import", file, "--campaign", "launch")
    assert printed.code == 3
    assert "Import 1 people into Launch?" in printed.err and "--yes" in printed.err
    assert re.search(r"new people +1", printed.out)
    assert people(connection) == []


def test_all_that_is_wrong_is_listed_with_its_line(
    command: Command, campaign: Campaign, connection: Connection, file: Path
) -> None:
    (taken,) = campaign.add_users(1)
    connection.execute(
        "UPDATE campaign_jobs.waitlist_users SET referral_code = 'TAKEN' WHERE id = %s", (taken,)
    )
    write(
        file,
        "email,first_name,referral_code,referred_by,verified_at,original_position",
        "ada@example.org,,ADA,,,10",
        '"new\nline@example.org",,,,,11',
        "no-address,,,,yesterday,0",
        "Ada@Example.org,,,,,12",
        "bob@example.org,,ADA,,,13",
        "carol@example.org,,TAKEN,,,1",
        "dan@example.org,,,NOBODY,,14",
        "eve@example.org,,,eve@example.org,,10",
        f"{'x' * 101}@example.org,{'y' * 101},,,3000-01-01,",
        "one,cell,too,many,in,this,line",
        "",
        ",no address,,,,",
        "fay@example.org,,,no-address,,15",
    )
    printed = command("import", file, "--campaign", campaign.id, "--yes", "--output", "json")
    assert printed.code == 2
    found = [(each["line"], each["column"]) for each in printed.json["problems"]]
    assert found == [
        (3, "email"),
        (5, "email"),
        (5, "original_position"),
        (5, "verified_at"),
        (6, "email"),
        (7, "referral_code"),
        (8, "original_position"),
        (8, "referral_code"),
        (9, "referred_by"),
        (10, "original_position"),
        (10, "referred_by"),
        (11, "first_name"),
        (11, "verified_at"),
        (12, ""),
        (14, "email"),
        (15, "referred_by"),
    ]
    reasons = {(each["line"], each["column"]): each["problem"] for each in printed.json["problems"]}
    assert reasons[(6, "email")] == reasons[(7, "referral_code")] == "it is in line 2 already"
    assert "nobody has this code or address" in reasons[(9, "referred_by")]
    assert "own" in reasons[(10, "referred_by")]
    assert "101 characters" in reasons[(11, "first_name")]
    assert "7 cells" in reasons[(12, "")]
    assert printed.json["written"] is None
    assert len(people(connection)) == 1, "nothing was written"


def test_an_address_with_a_zone_is_told_with_its_line(
    command: Command, campaign: Campaign, connection: Connection, file: Path
) -> None:
    write(file, "email,ip", "ada@example.org,fe80::1", "bob@example.org,fe80::1%eth0")
    printed = command("import", file, "--campaign", campaign.id, "--yes", "--output", "json")
    assert printed.code == 2, printed.err
    assert [(each["line"], each["column"]) for each in printed.json["problems"]] == [(3, "ip")]
    skipped = command("import", file, "--campaign", campaign.id, "--skip-invalid", "--yes")
    assert skipped.code == 0 and len(people(connection)) == 1


def test_wrong_lines_can_be_left_out_and_with_them_who_depends_on_them(
    command: Command, campaign: Campaign, connection: Connection, file: Path
) -> None:
    write(
        file,
        "email,referral_code,referred_by,original_position",
        "ada@example.org,ADA,,oops",
        "bob@example.org,BOB,ADA,",
        "carol@example.org,,bob@example.org,",
        "dan@example.org,DAN,,7",
        "eve@example.org,,DAN,",
    )
    printed = command(
        "import", file, "--campaign", campaign.id, "--skip-invalid", "--yes", "--output", "json"
    )
    assert printed.code == 0, printed.err
    assert [each["line"] for each in printed.json["problems"]] == [2, 3, 4]
    assert printed.json["problems"][2]["problem"] == "line 3 is left out, so this one is, too"
    assert people(connection) == [("dan@example.org", "pending", 7), ("eve@example.org", "pending", 8)]


def test_the_same_file_again_changes_nothing(
    command: Command, campaign: Campaign, connection: Connection, file: Path
) -> None:
    write(file, "email,referral_code,referred_by", "ada@example.org,ADA,", "bob@example.org,,ADA")
    first = command("import", file, "--campaign", campaign.id, "--yes", "--output", "json")
    before = people(connection, "id, email, original_position, touched_at")
    with file.open("a", encoding="utf-8") as stream:
        stream.write("carol@example.org,,bob@example.org\n")
    again = command("import", file, "--campaign", campaign.id, "--yes", "--output", "json")
    assert (first.code, again.code) == (0, 0), again.err
    assert (again.json["already_there"], again.json["new_people"]) == (2, 1)
    assert again.json["written"]["people"] == again.json["written"]["referrals"] == 1
    assert people(connection, "id, email, original_position, touched_at")[:2] == before
    assert connection.execute("SELECT count(*) FROM campaign_jobs.referrals").fetchone() == (2,)


def test_who_referred_may_be_in_the_campaign_only(
    command: Command, campaign: Campaign, connection: Connection, file: Path
) -> None:
    one, other = campaign.add_users(2)
    connection.execute("UPDATE campaign_jobs.waitlist_users SET referral_code = 'OLD' WHERE id = %s", (one,))
    write(file, "email,referred_by", "ada@example.org,OLD", f"bob@example.org,{other}@EXAMPLE.org")
    assert command("import", file, "--campaign", campaign.id, "--yes").code == 0
    found = connection.execute(
        "SELECT referrer_id FROM campaign_jobs.referrals ORDER BY created_at"
    ).fetchall()
    assert {row[0] for row in found} == {one, other}


def test_positions_are_kept_where_they_are_given_and_assigned_behind_all_others(
    command: Command, campaign: Campaign, connection: Connection, file: Path
) -> None:
    campaign.add_users(3)
    write(
        file,
        "email,original_position",
        "a@example.org,",
        "b@example.org,20",
        "c@example.org,",
        "d@example.org,10",
    )
    printed = command("import", file, "--campaign", campaign.id, "--yes", "--output", "json")
    assert printed.json["positions_assigned"] == 2
    assert [(row[0][0], row[2]) for row in people(connection)[3:]] == [
        ("d", 10),
        ("b", 20),
        ("a", 21),
        ("c", 22),
    ]


@pytest.mark.parametrize(("option", "expected"), [("--verification", ["bob"]), ("--welcome", ["ada"])])
def test_mails_are_asked_for_in_the_transaction_of_the_people(
    command: Command,
    campaign: Campaign,
    connection: Connection,
    file: Path,
    option: str,
    expected: Sequence[str],
) -> None:
    write(file, "email,verified_at", "ada@example.org,2025-01-01", "bob@example.org,")
    assert command("import", file, "--campaign", campaign.id, option, "--yes").code == 0
    ids = dict(people(connection, "split_part(email, '@', 1), id::text"))
    assert mails(connection) == [(f"job.email.{option[2:]}", ids[name]) for name in expected]
    assert connection.execute(
        "SELECT length(verification_token) FROM campaign_jobs.waitlist_users WHERE email = 'bob@example.org'"
    ).fetchone() == (64,), "a verification mail needs one"


def test_somebody_who_signs_up_meanwhile_is_not_lost_and_not_doubled(
    endpoints: Any, campaign: Campaign, connection: Connection, file: Path
) -> None:
    """Between the look and the writing, somebody takes the next position, and somebody of the file signs up."""
    write(file, "email,referred_by", "ada@example.org,", "bob@example.org,ada@example.org")
    target = targets.find("local", directory=endpoints.directory)
    with target.database() as own:
        importing_ = Import(own, campaign.id)
        importing_.take(PeopleFile(file).read())
        assert importing_.check() == []
        ada, stranger = uuid4(), uuid4()
        connection.execute(
            "INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position)"
            " VALUES (%s, %s, 'ADA@example.org', 1), (%s, %s, 'stranger@example.org', 2)",
            (ada, campaign.id, stranger, campaign.id),
        )
        written = importing_.write(verification=False, welcome=False)
    assert (written.people, written.referrals) == (1, 1)
    assert [row[0] for row in people(connection)] == [
        "ADA@example.org",
        "stranger@example.org",
        "bob@example.org",
    ]
    assert connection.execute("SELECT referrer_id FROM campaign_jobs.referrals").fetchall() == [(ada,)]


def test_a_position_that_is_taken_while_we_write_is_looked_for_again(
    endpoints: Any, campaign: Campaign, connection: Connection, database_url: str, file: Path
) -> None:
    """A service's open transaction has the position, so that our insert waits for it and is refused."""
    write(file, "email", "ada@example.org")
    target = targets.find("local", directory=endpoints.directory)
    with target.database() as own, psycopg.connect(database_url) as service, ThreadPoolExecutor() as pool:
        importing_ = Import(own, campaign.id)
        importing_.take(PeopleFile(file).read())
        importing_.check()
        service.execute(
            "INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position)"
            " VALUES (gen_random_uuid(), %s, 'stranger@example.org', 1)",
            (campaign.id,),
        )
        writing = pool.submit(importing_.write, verification=False, welcome=False)
        while not writing.done() and not waits_for_a_lock(connection, own.info.backend_pid):
            time.sleep(0.01)
        assert not writing.done()
        service.commit()
        assert writing.result(timeout=30).people == 1
    assert [(row[0], row[2]) for row in people(connection)] == [
        ("stranger@example.org", 1),
        ("ada@example.org", 2),
    ]


def waits_for_a_lock(connection: Connection, pid: int) -> bool:
    return connection.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (pid,)).fetchone() == (True,)


def test_other_headers_and_separators(
    command: Command, campaign: Campaign, connection: Connection, file: Path
) -> None:
    write(file, "\ufeffE-Mail;Name;Phone", "ada@example.org;Ada;123")
    options = ["--delimiter", ";", "--column", "email=E-Mail", "--column", "first_name=name"]
    printed = command("import", file, "--campaign", campaign.id, *options, "--yes", "--output", "json")
    assert printed.code == 0, printed.err
    assert printed.json["ignored_columns"] == ["Phone"]
    assert people(connection, "email, first_name, original_position") == [("ada@example.org", "Ada", 1)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name\nAda\n", "no column email"),
        (b"", "no column email"),
        (b"email,email\na@example.org,b@example.org\n", "two columns for email"),
        (b"email\n\xff@example.org\n", "not UTF-8"),
        (b'"email\nada@example.org', "the header of"),
        (b"x" * 200_000, "the header of"),
    ],
)
def test_a_file_that_is_none(
    command: Command, campaign: Campaign, connection: Connection, file: Path, content: bytes, told: str
) -> None:
    file.write_bytes(content)
    printed = command("import", file, "--campaign", campaign.id, "--yes")
    assert printed.code == 2 and told in printed.err
    assert people(connection) == []


def test_a_file_that_ends_in_the_middle_is_not_half_imported(
    command: Command, campaign: Campaign, connection: Connection, file: Path
) -> None:
    file.write_text('email,first_name\nada@example.org,Ada\nbob@example.org,"Bo')
    printed = command(
        "import", file, "--campaign", campaign.id, "--skip-invalid", "--yes", "--output", "json"
    )
    assert printed.code == 2
    assert [(each["line"], each["column"]) for each in printed.json["problems"]] == [(3, "")]
    assert people(connection) == []


def test_a_campaign_that_is_not_there(command: Command, campaign: Campaign, file: Path) -> None:
    write(file, "email", "ada@example.org")
    printed = command("import", file, "--campaign", "Lunch", "--yes")
    assert printed.code == 1 and "'Launch'" in printed.err


def test_no_statement_for_each_person(
    command: Command,
    campaign: Campaign,
    connection: Connection,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three thousand people take as many statements as three."""
    execute, statements = psycopg.Connection.execute, 0

    def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal statements
        statements += 1
        return execute(self, *arguments, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", counting)
    counts = []
    for number, size in enumerate((3, 3_000)):
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows(_rows(number, size))
        statements = 0
        printed = command("import", file, "--campaign", campaign.id, "--yes", "--output", "json")
        counts.append(statements)
        assert printed.json["written"]["people"] == size, printed.err
        assert printed.json["written"]["referrals"] == size - 1
    assert counts[0] == counts[1]


def _rows(number: int, size: int) -> Iterable[Sequence[str]]:
    yield "email", "referral_code", "referred_by"
    for person in range(size):
        referred_by = "" if person == 0 else f"code-{number}-{person // 2}"
        if person == 1:
            referred_by = f"person-{number}-0@example.org"
        yield f"person-{number}-{person}@example.org", f"code-{number}-{person}", referred_by


def test_the_function_names_what_it_takes() -> None:
    """Every column that a file may have is in the command's help."""
    for name in importing.COLUMNS:
        assert name in (importing.import_people.__doc__ or "")
