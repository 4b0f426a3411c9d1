"""SSM parameters of an environment, by which services and operators find what the stack has made."""

from collections.abc import Iterable

from aws_cdk import aws_ssm as ssm
from constructs import Construct

from infra.environment_settings import Environment


def put_parameters(
    scope: Construct, environment: Environment, parameters: Iterable[tuple[str, str, str]]
) -> None:
    """Each by its name below /campaign-jobs/<environment>/, its value and its description."""
    for name, value, description in parameters:
        ssm.StringParameter(
            scope,
            name,
            parameter_name=f"/campaign-jobs/{environment.name}/{name}",
            string_value=value,
            description=description,
        )
