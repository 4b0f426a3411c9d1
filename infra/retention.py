"""What outlives its stack."""

from aws_cdk import CfnResource, RemovalPolicy
from constructs import Construct

from infra.environment_settings import Environment


def removal_policy(environment: Environment) -> RemovalPolicy:
    # What a deployment creates before it fails goes again, or the next one would meet its name.
    return RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE if environment.retain_data else RemovalPolicy.DESTROY


def keep(environment: Environment, *constructs: Construct) -> None:
    """Let all that these hold by now outlive the stack, where the environment keeps its data, or else end with it.

    What is put below them afterwards ends with the stack in any case: a rule that lets a function in would keep the
    function's security group from being deleted. (CDK's RemovalPolicies would reach that, too.)
    """
    for construct in constructs:
        for child in construct.node.find_all():
            if isinstance(child, CfnResource):
                child.apply_removal_policy(removal_policy(environment))
