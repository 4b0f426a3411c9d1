"""The unsubscribe links' function, its URL, and the keys that sign and verify them."""

from aws_cdk import aws_apigatewayv2 as apigatewayv2
from aws_cdk import aws_apigatewayv2_integrations as integrations
from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from campaign_jobs.catalog import UNSUBSCRIBE
from infra.acknowledged import acknowledge
from infra.environment_settings import CustomDomain, Environment
from infra.functions import JobFunction
from infra.layers import Layers
from infra.network import Network
from infra.retention import removal_policy


class Unsubscribe(Construct):
    def __init__(
        self, scope: Construct, id: str, *, environment: Environment, network: Network, layers: Layers
    ) -> None:
        super().__init__(scope, id)
        self._keys = self._take_or_make_keys(environment)
        # No reserved concurrency: a new account's quota of ten leaves nothing to reserve. A request without a good
        # token costs a few milliseconds and no connection.
        self.function = JobFunction(
            self,
            "Function",
            name=UNSUBSCRIBE.name,
            description=f"Answers the unsubscribe links of {environment.name}",
            environment=environment,
            network=network,
            layers=layers,
            timeout_seconds=UNSUBSCRIBE.timeout_seconds,
            memory_mb=UNSUBSCRIBE.memory_mb,
            variables={},
        )
        acknowledge(self.function, "Whoever calls waits for the answer", "Serverless-LambdaDLQ")
        self._let_read_keys(self.function)
        self.dns_records: dict[str, str] = {}
        """What the custom domain's DNS must carry, by a name for each."""
        # Open to all: mail providers and people call it without any credentials but the signed token (RFC 8058).
        domain = environment.unsubscribe_domain
        self.url = (
            self.function.add_function_url(auth_type=lambda_.FunctionUrlAuthType.NONE).url
            if domain is None
            else self._serve_at(domain)
        )

    def _take_or_make_keys(self, environment: Environment) -> secretsmanager.ISecret:
        if environment.unsubscribe_keys_secret_arn is not None:
            return secretsmanager.Secret.from_secret_complete_arn(
                self, "Keys", environment.unsubscribe_keys_secret_arn
            )
        keys = secretsmanager.Secret(
            self,
            "Keys",
            secret_name=environment.resource_name("unsubscribe-keys"),
            description="Keys of unsubscribe links, separated by commas: the first one signs, all verify",
            generate_secret_string=secretsmanager.SecretStringGenerator(
                password_length=64, exclude_punctuation=True
            ),
            # Without them the links of all mails that have been sent are dead.
            removal_policy=removal_policy(environment),
        )
        acknowledge(
            keys,
            "Rotated by hand: the keys of mails that have been sent must stay behind the new one",
            "AwsSolutions-SMG4",
        )
        return keys

    def _serve_at(self, domain: CustomDomain) -> str:
        """A function URL cannot carry a name of ours; an HTTP API can, and hands on events of the same format."""
        name = apigatewayv2.DomainName(
            self,
            "DomainName",
            domain_name=domain.name,
            certificate=acm.Certificate.from_certificate_arn(self, "Certificate", domain.certificate_arn),
            security_policy=apigatewayv2.SecurityPolicy.TLS_1_2,
        )
        api = apigatewayv2.HttpApi(
            self,
            "Api",
            api_name=self.function.function_name,
            description="Unsubscribe links",
            default_domain_mapping=apigatewayv2.DomainMappingOptions(domain_name=name),
            default_integration=integrations.HttpLambdaIntegration("Integration", self.function),
            # Whoever has the link knows the name; a second way in would only be one more to watch.
            disable_execute_api_endpoint=True,
        )
        acknowledge(
            api.node.find_child("DefaultRoute"),
            "The token in the link is what authorizes: mail providers have nothing else to show (RFC 8058)",
            "AwsSolutions-APIG4",
        )
        stage = api.node.find_child("DefaultStage")
        acknowledge(
            stage,
            "The function logs how each request ended; here, tokens and people's addresses would be logged besides",
            "AwsSolutions-APIG1",
            "Serverless-APIGWAccessLogging",
        )
        acknowledge(
            stage,
            "Whoever is turned away stays subscribed, so nothing is turned away below the account's own limit",
            "Serverless-APIGWDefaultThrottling",
        )
        self.dns_records = {"UnsubscribeDomain": f"{domain.name} CNAME {name.regional_domain_name}"}
        return f"https://{domain.name}"

    def let_sign(self, function: JobFunction) -> None:
        """Let a function make unsubscribe links."""
        self._let_read_keys(function)
        function.add_environment("UNSUBSCRIBE_URL", self.url)

    def _let_read_keys(self, function: JobFunction) -> None:
        self._keys.grant_read(function)
        function.add_environment("UNSUBSCRIBE_KEYS_SECRET_ARN", self._keys.secret_arn)
