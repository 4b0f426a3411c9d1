"""The schema is there before any function's code that wants it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from campaign_jobs import catalog, settings
from campaign_jobs.database import migrations
from infra import environments
from tests.infrastructure.synthesis import Synthesis, synthesise

USING_THE_DATABASE = sorted(
    name
    for name, function in settings.BY_FUNCTION.items()
    if "DATABASE_SECRET_ARN" in function.environment_names() and name != catalog.MIGRATIONS.name
)


def behind(synthesis: Synthesis, logical_id: str) -> set[str]:
    """All that CloudFormation has made or changed before it turns to a resource."""
    resources = synthesis.template["Resources"]
    seen: set[str] = set()
    waiting = [logical_id]
    while waiting:
        for name in _directly_behind(resources[waiting.pop()]):
            if name in resources and name not in seen:
                seen.add(name)
                waiting.append(name)
    return seen


def _directly_behind(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "Ref":
                yield inner
            elif key == "Fn::GetAtt":
                yield inner[0]
            elif key == "DependsOn":
                yield from inner
            else:
                yield from _directly_behind(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _directly_behind(inner)


def test_the_schema_is_asked_for_by_its_last_migration(synthesis: Synthesis) -> None:
    _, schema = synthesis.one("Custom::CampaignJobsSchema")
    function, _ = synthesis.function("migrations")
    assert schema["Properties"] == {
        "ServiceToken": {"Fn::GetAtt": [function, "Arn"]},
        "ServiceTimeout": str(catalog.MIGRATIONS.timeout_seconds),
        "Latest": migrations.names()[-1],
        "Content": migrations.content_hash(),
    }


def test_another_migration_is_another_request(
    dev: Synthesis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CloudFormation calls the function only when a property changes."""
    package = tmp_path / "migrations"
    package.mkdir()
    original = migrations.files(migrations.__name__)
    for name in migrations.names():
        (package / f"{name}.sql").write_bytes(original.joinpath(f"{name}.sql").read_bytes())
    monkeypatch.setattr(migrations, "files", lambda _: package)

    def request() -> tuple[str, str]:
        _, schema = synthesise(environments.DEV, tmp_path / "cdk.out").one("Custom::CampaignJobsSchema")
        return schema["Properties"]["Latest"], schema["Properties"]["Content"]

    _, deployed = dev.one("Custom::CampaignJobsSchema")
    same = request()
    assert same == (deployed["Properties"]["Latest"], deployed["Properties"]["Content"])
    (package / "9999_one_more.sql").write_text("SELECT 1;")
    more = request()
    assert more[0] == "9999_one_more"
    assert more[1] != same[1]
    (package / "9999_one_more.sql").write_text("SELECT 2;")
    edited = request()
    assert edited[0] == more[0]
    assert edited[1] != more[1]


@pytest.mark.parametrize("name", USING_THE_DATABASE)
def test_no_function_gets_new_code_before_the_schema_is_there(synthesis: Synthesis, name: str) -> None:
    schema, _ = synthesis.one("Custom::CampaignJobsSchema")
    function_id, function = synthesis.function(name)
    assert schema in function["DependsOn"]
    # Nor is it called while it waits: what invokes it comes behind it.
    assert schema in behind(synthesis, function_id)


def test_the_schema_waits_for_the_way_to_the_database(synthesis: Synthesis) -> None:
    schema, _ = synthesis.one("Custom::CampaignJobsSchema")
    before = behind(synthesis, schema)
    instances = set(synthesis.resources("AWS::RDS::DBInstance"))
    attachment, _ = synthesis.one("AWS::SecretsManager::SecretTargetAttachment")
    assert instances
    assert instances | {attachment} <= before
    group = synthesis.security_group("migrations")
    out = {
        logical_id
        for logical_id, rule in synthesis.resources("AWS::EC2::SecurityGroupEgress").items()
        if rule["Properties"]["GroupId"] == group
    }
    let_in = {
        logical_id
        for logical_id, rule in synthesis.resources("AWS::EC2::SecurityGroupIngress").items()
        if rule["Properties"].get("SourceSecurityGroupId") == group
    }
    assert len(out) == len(let_in) == 1
    assert out | let_in <= before
    ways_out = {
        logical_id for logical_id in synthesis.resources("AWS::EC2::Route") if "PrivateSubnet" in logical_id
    }
    assert ways_out
    assert ways_out <= before
    policies = {
        logical_id
        for logical_id, policy in synthesis.resources("AWS::IAM::Policy").items()
        if policy["Properties"]["Roles"]
        == [{"Ref": synthesis.function("migrations")[1]["Properties"]["Role"]["Fn::GetAtt"][0]}]
    }
    assert len(policies) == 1
    assert policies <= before


def test_the_schema_waits_for_no_function_but_its_own(synthesis: Synthesis) -> None:
    schema, _ = synthesis.one("Custom::CampaignJobsSchema")
    ours = {
        logical_id
        for logical_id, function in synthesis.resources("AWS::Lambda::Function").items()
        if "FunctionName" in function["Properties"]
    }
    assert behind(synthesis, schema) & ours == {synthesis.function("migrations")[0]}


def test_a_failed_migration_is_not_tried_again_behind_the_deployment_s_back(synthesis: Synthesis) -> None:
    function, _ = synthesis.function("migrations")
    (asynchronous,) = (
        configuration["Properties"]
        for configuration in synthesis.resources("AWS::Lambda::EventInvokeConfig").values()
        if configuration["Properties"]["FunctionName"] == {"Ref": function}
    )
    assert asynchronous["MaximumRetryAttempts"] == 0


def test_nobody_but_the_deployment_calls_it(synthesis: Synthesis) -> None:
    function, _ = synthesis.function("migrations")
    assert "migrations" not in str(synthesis.resources("AWS::Lambda::Permission"))
    calling = [
        logical_id
        for type_name in ("AWS::Lambda::EventSourceMapping", "AWS::Lambda::Alias", "AWS::Events::Rule")
        for logical_id, resource in synthesis.resources(type_name).items()
        if function in str(resource)
    ]
    assert calling == []
