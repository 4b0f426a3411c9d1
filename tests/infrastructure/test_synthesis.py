"""The same input gives the same template, from files alone; what it points at is what Lambda needs."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from campaign_jobs import settings
from infra import build_dependencies, environments, layers
from infra.environment_settings import Retention
from tests.infrastructure.synthesis import Synthesis, synthesise


def asset_directory(synthesis: Synthesis, location: dict[str, object]) -> Path:
    """Where the cloud assembly keeps what a function or layer takes from that object in S3."""
    key = str(location["S3Key"])
    manifest = json.loads(
        (synthesis.directory / f"campaign-jobs-{synthesis.environment.name}.assets.json").read_text()
    )
    source = manifest["files"][key.removesuffix(".zip")]["source"]
    assert source["packaging"] == "zip"
    return synthesis.directory / str(source["path"])


def test_synthesising_again_gives_the_same_template(dev: Synthesis, repository: Path, tmp_path: Path) -> None:
    """Through app.py, in a process of its own with other hash seeds, without credentials or a region."""
    context = {**json.loads((repository / "cdk.json").read_text())["context"], "env": "dev"}
    subprocess.run(
        [sys.executable, "app.py"],
        cwd=repository,
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", str(tmp_path)),
            "PYTHONPATH": "layers/campaign_jobs/python",
            "PYTHONHASHSEED": "7",
            "CDK_OUTDIR": str(tmp_path),
            "CDK_CONTEXT_JSON": json.dumps(context),
        },
        check=True,
    )
    assert json.loads((tmp_path / "campaign-jobs-dev.template.json").read_text()) == dev.template
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    # What needs a look-up in the account is listed here.
    assert "missing" not in manifest
    assert manifest["artifacts"]["campaign-jobs-dev"]["environment"] == "aws://unknown-account/unknown-region"


def test_the_stack_needs_nothing_but_what_requirements_txt_installs(repository: Path) -> None:
    """Whoever deploys has the CDK's requirements, and not those of the functions."""
    absent = ("aws_lambda_powertools", "boto3", "confluent_kafka", "jinja2", "psycopg", "pydantic", "yoyo")
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.modules.update(dict.fromkeys({absent})); import infra.stack",
        ],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": "layers/campaign_jobs/python"},
        check=True,
    )


def test_the_template_follows_the_environment_s_settings(tmp_path: Path) -> None:
    tuned = replace(
        environments.DEV,
        analytics_interval="90m",
        kafka_worker_pool_size=3,
        kafka_job_topic="events",
        kafka_job_consumer_group="workers",
        public_base_url="https://jobs.example.com",
        retention=Retention(outbox_retention_days=14),
    )
    synthesis = synthesise(tuned, tmp_path)
    _, rule = synthesis.named("AWS::Events::Rule", "Name", "analytics")
    assert rule["Properties"]["ScheduleExpression"] == "rate(90 minutes)"
    _, analytics = synthesis.function("analytics")
    kept = {
        name: value
        for name, value in analytics["Properties"]["Environment"]["Variables"].items()
        if name == "ANALYTICS_INTERVAL" or name.endswith("_RETENTION_DAYS")
    }
    assert kept == {"ANALYTICS_INTERVAL": "90m", "OUTBOX_RETENTION_DAYS": "14"}
    _, email = synthesis.function("email")
    variables = email["Properties"]["Environment"]["Variables"]
    assert variables["KAFKA_WORKER_POOL_SIZE"] == "3"
    assert variables["KAFKA_JOB_CONSUMER_GROUP"] == "workers"
    assert variables["DEFAULT_PUBLIC_BASE_URL"] == "https://jobs.example.com"
    groups = {
        mapping["Properties"]["AmazonManagedKafkaEventSourceConfig"]["ConsumerGroupId"]
        for mapping in synthesis.resources("AWS::Lambda::EventSourceMapping").values()
        if mapping["Properties"].get("Topics") == ["events"]
    }
    assert groups == {
        "workers-email",
        "workers-email-bulk",
        "workers-position",
        "workers-reward",
        "workers-unroutable",
    }


@pytest.mark.parametrize("name", sorted(settings.BY_FUNCTION))
def test_each_function_s_code_has_the_handler_it_names(dev: Synthesis, name: str) -> None:
    _, function = dev.function(name)
    module, _, attribute = function["Properties"]["Handler"].partition(".")
    directory = asset_directory(dev, function["Properties"]["Code"])
    tree = ast.parse((directory / f"{module}.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assigned = {
        ast.unparse(target) for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
    }
    assert attribute in functions | assigned


def test_the_package_s_layer_holds_the_package_and_nothing_else(dev: Synthesis) -> None:
    (layer,) = (
        resource["Properties"]
        for resource in dev.resources("AWS::Lambda::LayerVersion").values()
        if resource["Properties"]["Description"] == "The package campaign_jobs"
    )
    directory = asset_directory(dev, layer["Content"])
    assert [entry.name for entry in directory.iterdir()] == ["python"]
    assert [entry.name for entry in (directory / "python").iterdir()] == ["campaign_jobs"]
    assert (directory / "python" / "campaign_jobs" / "catalog.py").is_file()
    assert list((directory / "python" / "campaign_jobs" / "database" / "migrations").glob("*.sql"))
    assert not list(directory.rglob("__pycache__"))


def test_third_party_code_is_built_by_a_command_when_deployed(dev: Synthesis, repository: Path) -> None:
    manifest = json.loads((dev.directory / "campaign-jobs-dev.assets.json").read_text())
    source = manifest["files"][layers.dependencies_hash()]["source"]
    assert source == {"executable": ["python3", "-m", "infra.build_dependencies", "arm64"]}
    assert f"python{build_dependencies.PYTHON_VERSION}" == layers.RUNTIME.name
    assert all(platform.endswith("_aarch64") for platform in build_dependencies.PLATFORMS["arm64"])
    assert build_dependencies.LOCK_FILE.relative_to(repository) == Path(
        "layers/dependencies/requirements.txt"
    )


def test_another_architecture_is_that_of_every_function_and_layer(tmp_path: Path) -> None:
    other = synthesise(environments.DEV, tmp_path, architecture="x86_64")
    functions = [
        function["Properties"]
        for function in other.resources("AWS::Lambda::Function").values()
        if function["Properties"].get("FunctionName") is not None
    ]
    assert {tuple(function["Architectures"]) for function in functions} == {("x86_64",)}
    layer_versions = other.resources("AWS::Lambda::LayerVersion").values()
    assert {tuple(layer["Properties"]["CompatibleArchitectures"]) for layer in layer_versions} == {
        ("x86_64",)
    }
    manifest = json.loads((other.directory / "campaign-jobs-dev.assets.json").read_text())
    source = manifest["files"][layers.dependencies_hash("x86_64")]["source"]
    assert source["executable"][-1] == "x86_64"
    assert all(platform.endswith("_x86_64") for platform in build_dependencies.PLATFORMS["x86_64"])
    assert layers.dependencies_hash("x86_64") != layers.dependencies_hash()


def test_the_layer_is_built_again_when_lock_file_python_or_platform_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = layers.dependencies_hash()
    assert layers.dependencies_hash() == before
    changed = tmp_path / "requirements.txt"
    changed.write_bytes(build_dependencies.LOCK_FILE.read_bytes() + b"# changed\n")
    for name, value in [
        ("LOCK_FILE", changed),
        ("PYTHON_VERSION", "3.14"),
        ("PLATFORMS", {"arm64": ("manylinux_2_34_aarch64",)}),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(layers, name, value)
            assert layers.dependencies_hash() != before
