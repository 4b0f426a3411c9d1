"""CloudFormation takes the templates: cfn-lint knows its resource types, their properties and what fits together."""

import copy
import json
from dataclasses import replace
from pathlib import Path

from cfnlint.api import lint
from cfnlint.config import ManualArgs

from infra.environments import PROD
from tests.infrastructure.existing import CUSTOM_DOMAIN, EXISTING_DATABASE, EXISTING_KAFKA, EXISTING_NETWORK
from tests.infrastructure.synthesis import Synthesis, synthesise

# CDK names dependencies that the references imply anyway, which does no harm.
HARMLESS = ["W3005"]


def problems(synthesis: Synthesis) -> list[str]:
    matches = lint(json.dumps(synthesis.template), config=ManualArgs(ignore_checks=HARMLESS))
    return [f"{match.rule.id} {match.message} at {'/'.join(map(str, match.path or []))}" for match in matches]


def test_each_environment_s_template_is_clean(synthesis: Synthesis) -> None:
    assert problems(synthesis) == []


def test_a_template_that_takes_what_is_there_is_clean(tmp_path: Path) -> None:
    taking = replace(
        PROD,
        network=EXISTING_NETWORK,
        kafka=EXISTING_KAFKA,
        database=EXISTING_DATABASE,
        unsubscribe_domain=CUSTOM_DOMAIN,
    )
    assert problems(synthesise(taking, tmp_path)) == []


def test_what_cloudformation_would_refuse_is_found(dev: Synthesis) -> None:
    broken = replace(dev, template=copy.deepcopy(dev.template))
    _, topic = broken.one("AWS::MSK::Topic")
    topic["Properties"]["PartitionCount"] = "many"
    (problem,) = problems(broken)
    assert problem.startswith("E3012 'many' is not of type 'integer'")
