"""The sender's domain, and a domain of one's own for unsubscribe links."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.environments import DEV, PROD
from tests.infrastructure.existing import CUSTOM_DOMAIN
from tests.infrastructure.synthesis import Synthesis, synthesise


@pytest.fixture(scope="module")
def prod(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    return synthesise(PROD, tmp_path_factory.mktemp("prod"))


@pytest.fixture(scope="module")
def with_domain(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    return synthesise(replace(DEV, unsubscribe_domain=CUSTOM_DOMAIN), tmp_path_factory.mktemp("domain"))


def output(synthesis: Synthesis, name: str) -> Any:
    return synthesis.template["Outputs"][name]["Value"]


def test_the_identity_signs_and_has_a_mail_from_domain(prod: Synthesis) -> None:
    _, identity = prod.one("AWS::SES::EmailIdentity")
    assert identity["Properties"] == {
        "EmailIdentity": "example.com",
        "DkimAttributes": {"SigningEnabled": True},
        # Bounces come as events; a mail of each would go to the sender besides.
        "FeedbackAttributes": {"EmailForwardingEnabled": False},
        "MailFromAttributes": {
            "MailFromDomain": "bounce.example.com",
            "BehaviorOnMxFailure": "USE_DEFAULT_VALUE",
        },
    }


def test_the_domain_s_records_are_put_out(prod: Synthesis) -> None:
    identity, _ = prod.one("AWS::SES::EmailIdentity")
    for number in (1, 2, 3):
        name = {"Fn::GetAtt": [identity, f"DkimDNSTokenName{number}"]}
        value = {"Fn::GetAtt": [identity, f"DkimDNSTokenValue{number}"]}
        assert output(prod, f"Dkim{number}") == {"Fn::Join": ["", [name, " CNAME ", value]]}
    assert output(prod, "MailFromMx") == {
        "Fn::Join": [
            "",
            ["bounce.example.com MX 10 feedback-smtp.", {"Ref": "AWS::Region"}, ".amazonses.com"],
        ]
    }
    assert output(prod, "MailFromSpf") == 'bounce.example.com TXT "v=spf1 include:amazonses.com ~all"'


def test_whoever_does_not_own_the_identity_puts_out_none_of_its_records(with_domain: Synthesis) -> None:
    assert with_domain.resources("AWS::SES::EmailIdentity") == {}
    assert not [name for name in with_domain.template["Outputs"] if name.startswith(("Dkim", "MailFrom"))]


def test_the_domain_of_unsubscribe_links_carries_its_certificate(with_domain: Synthesis) -> None:
    domain, properties = with_domain.one("AWS::ApiGatewayV2::DomainName")
    (configuration,) = properties["Properties"]["DomainNameConfigurations"]
    assert properties["Properties"]["DomainName"] == "mail.example.com"
    assert configuration["CertificateArn"] == CUSTOM_DOMAIN.certificate_arn
    assert configuration["EndpointType"] == "REGIONAL"
    assert configuration["SecurityPolicy"] == "TLS_1_2"
    assert output(with_domain, "UnsubscribeDomain") == {
        "Fn::Join": ["", ["mail.example.com CNAME ", {"Fn::GetAtt": [domain, "RegionalDomainName"]}]]
    }


def test_everything_that_comes_to_the_domain_goes_to_the_function(with_domain: Synthesis) -> None:
    function, _ = with_domain.function("unsubscribe")
    api, properties = with_domain.one("AWS::ApiGatewayV2::Api")
    domain, _ = with_domain.one("AWS::ApiGatewayV2::DomainName")
    integration, to_function = with_domain.one("AWS::ApiGatewayV2::Integration")
    _, route = with_domain.one("AWS::ApiGatewayV2::Route")
    _, mapping = with_domain.one("AWS::ApiGatewayV2::ApiMapping")
    assert properties["Properties"]["ProtocolType"] == "HTTP"
    # Only the domain leads in.
    assert properties["Properties"]["DisableExecuteApiEndpoint"] is True
    assert to_function["Properties"]["IntegrationUri"] == {"Fn::GetAtt": [function, "Arn"]}
    # The format of events of function URLs, which the handler reads.
    assert to_function["Properties"]["PayloadFormatVersion"] == "2.0"
    assert route["Properties"]["RouteKey"] == "$default"
    assert route["Properties"]["Target"] == {"Fn::Join": ["", ["integrations/", {"Ref": integration}]]}
    assert mapping["Properties"]["DomainName"] == {"Ref": domain}
    assert mapping["Properties"]["ApiId"] == {"Ref": api}
    # At the domain's root, since links say nothing of a path before theirs.
    assert "ApiMappingKey" not in mapping["Properties"]


def test_only_the_api_may_call_the_function_behind_the_domain(with_domain: Synthesis) -> None:
    assert with_domain.resources("AWS::Lambda::Url") == {}
    function, _ = with_domain.function("unsubscribe")
    api, _ = with_domain.one("AWS::ApiGatewayV2::Api")
    (permission,) = (
        permission["Properties"]
        for permission in with_domain.resources("AWS::Lambda::Permission").values()
        if permission["Properties"]["FunctionName"] == {"Fn::GetAtt": [function, "Arn"]}
    )
    assert permission["Principal"] == "apigateway.amazonaws.com"
    assert {"Ref": api} in permission["SourceArn"]["Fn::Join"][1]


def test_the_links_in_mails_lead_to_the_domain(with_domain: Synthesis) -> None:
    _, email = with_domain.function("email")
    variables = email["Properties"]["Environment"]["Variables"]
    assert variables["UNSUBSCRIBE_URL"] == output(with_domain, "UnsubscribeUrl") == "https://mail.example.com"


def test_the_identity_s_mail_from_domain_follows_the_settings(tmp_path: Path) -> None:
    sending = replace(PROD.sending, domain="example.org", default_sender="a@example.org", mail_from="mx")
    synthesis = synthesise(replace(PROD, sending=sending), tmp_path)
    _, identity = synthesis.one("AWS::SES::EmailIdentity")
    assert identity["Properties"]["MailFromAttributes"]["MailFromDomain"] == "mx.example.org"
