"""Findings of cdk-nag that are left as they are, each at the one resource that it is about, with the reason."""

from aws_cdk import Acknowledgment, Validations
from constructs import IConstruct


def acknowledge(construct: IConstruct, reason: str, *rules: str) -> None:
    """Say why a construct breaks rules. A test fails where a rule is not broken there, or not only there."""
    Validations.of(construct).acknowledge(*(Acknowledgment(id=rule, reason=reason) for rule in rules))
