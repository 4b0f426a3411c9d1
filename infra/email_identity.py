"""SES: the domain that mail is sent from, and how this environment sends."""

from aws_cdk import Aws
from aws_cdk import aws_iam as iam
from aws_cdk import aws_ses as ses
from constructs import Construct

from infra.environment_settings import Environment
from infra.retention import removal_policy


class EmailIdentity(Construct):
    """The identity belongs to the account, so one environment's stack holds it and the others refer to it."""

    def __init__(self, scope: Construct, id: str, *, environment: Environment) -> None:
        super().__init__(scope, id)
        self.configuration_set = ses.ConfigurationSet(
            self,
            "ConfigurationSet",
            configuration_set_name=environment.resource_name("email"),
            tls_policy=ses.ConfigurationSetTlsPolicy.REQUIRE,
            reputation_metrics=True,
            suppression_reasons=ses.SuppressionReasons.BOUNCES_AND_COMPLAINTS,
        )
        self._prefix = f"arn:{Aws.PARTITION}:ses:{Aws.REGION}:{Aws.ACCOUNT_ID}"
        sending = environment.sending
        self._domains = (sending.domain, *sending.further_domains)
        self.dns_records: dict[str, str] = {}
        """What the domain's DNS must carry, by a name for each."""
        if sending.owns_identity:
            mail_from = f"{sending.mail_from}.{sending.domain}"
            identity = ses.EmailIdentity(
                self,
                "Domain",
                identity=ses.Identity.domain(sending.domain),
                mail_from_domain=mail_from,
                # Until its records are there, mail leaves as if there were no MAIL FROM domain.
                mail_from_behavior_on_mx_failure=ses.MailFromBehaviorOnMxFailure.USE_DEFAULT_VALUE,
                dkim_signing=True,
                feedback_forwarding=False,
            )
            identity.apply_removal_policy(removal_policy(environment))
            self.dns_records = {
                **{
                    f"Dkim{number}": f"{record.name} CNAME {record.value}"
                    for number, record in enumerate(identity.dkim_records, start=1)
                },
                "MailFromMx": f"{mail_from} MX 10 feedback-smtp.{Aws.REGION}.amazonses.com",
                "MailFromSpf": f'{mail_from} TXT "v=spf1 include:amazonses.com ~all"',
            }

    @property
    def arns(self) -> list[str]:
        """What mail is sent from and with."""
        return [
            *(f"{self._prefix}:identity/{domain}" for domain in self._domains),
            f"{self._prefix}:configuration-set/{self.configuration_set.configuration_set_name}",
        ]

    def grant_send(self, grantee: iam.IGrantable) -> None:
        """Let it send from our domains, and ask how fast the account may."""
        iam.Grant.add_to_principal(grantee=grantee, actions=["ses:SendEmail"], resource_arns=self.arns)
        # The account's rate belongs to no resource, so this action knows none.
        iam.Grant.add_to_principal(grantee=grantee, actions=["ses:GetAccount"], resource_arns=["*"])
