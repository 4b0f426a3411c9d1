"""The database's schema, brought up to date while the stack is deployed, before functions get their new code."""

from aws_cdk import CfnResource, CustomResource, Duration
from constructs import Construct

from campaign_jobs.catalog import MIGRATIONS
from campaign_jobs.database import migrations
from infra.acknowledged import acknowledge
from infra.database import Database
from infra.environment_settings import Environment
from infra.functions import JobFunction
from infra.layers import Layers
from infra.network import Network


class Migrations(Construct):
    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        environment: Environment,
        network: Network,
        layers: Layers,
        database: Database,
    ) -> None:
        super().__init__(scope, id)
        self.function = JobFunction(
            self,
            "Function",
            name=MIGRATIONS.name,
            description=f"Brings the schema of {environment.name} up to date when it is deployed",
            environment=environment,
            network=network,
            layers=layers,
            timeout_seconds=MIGRATIONS.timeout_seconds,
            memory_mb=MIGRATIONS.memory_mb,
            variables={},
        )
        database.let_in(self.function)
        # CloudFormation calls it asynchronously, and takes one answer: a second try would answer nobody.
        self.function.configure_async_invoke(retry_attempts=0)
        acknowledge(
            self.function,
            "The deployment waits for the answer, and shows what went wrong",
            "Serverless-LambdaDLQ",
            "Serverless-LambdaAsyncFailureDestination",
        )
        # All that it takes: the function's role, log group and way out, the writer, and the network between them.
        before = [*self.node.children, database, network]
        schema = CustomResource(
            self,
            "Schema",
            service_token=self.function.function_arn,
            resource_type="Custom::CampaignJobsSchema",
            # The content is there so that CloudFormation sees a change; the function goes by the name.
            properties={"Latest": migrations.names()[-1], "Content": migrations.content_hash()},
            service_timeout=Duration.seconds(MIGRATIONS.timeout_seconds),
        )
        schema.node.add_dependency(*before)
        resource = schema.node.default_child
        if not isinstance(resource, CfnResource):
            raise TypeError("a custom resource is a resource of CloudFormation")
        database.migrated = resource
