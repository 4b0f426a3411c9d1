"""What holds data: encrypted, and out of reach."""

from tests.infrastructure.synthesis import Synthesis


def test_the_database_is_encrypted_and_speaks_tls_only(synthesis: Synthesis) -> None:
    _, cluster = synthesis.one("AWS::RDS::DBCluster")
    assert cluster["Properties"]["StorageEncrypted"] is True
    assert cluster["Properties"]["DeletionProtection"] is synthesis.environment.retain_data
    parameters, group = synthesis.one("AWS::RDS::DBClusterParameterGroup")
    assert cluster["Properties"]["DBClusterParameterGroupName"] == {"Ref": parameters}
    assert group["Properties"]["Parameters"] == {"rds.force_ssl": "1"}


def test_the_database_never_pauses_and_is_never_public(synthesis: Synthesis) -> None:
    _, cluster = synthesis.one("AWS::RDS::DBCluster")
    assert cluster["Properties"]["ServerlessV2ScalingConfiguration"]["MinCapacity"] >= 0.5
    instances = synthesis.resources("AWS::RDS::DBInstance").values()
    assert len(instances) == (2 if synthesis.environment.name == "prod" else 1)
    for instance in instances:
        assert instance["Properties"]["DBInstanceClass"] == "db.serverless"
        assert instance["Properties"]["PubliclyAccessible"] is False


def test_the_password_is_made_up_by_secrets_manager(synthesis: Synthesis) -> None:
    _, secret = synthesis.named("AWS::SecretsManager::Secret", "Name", "database")
    assert secret["Properties"]["GenerateSecretString"]["GenerateStringKey"] == "password"
    _, cluster = synthesis.one("AWS::RDS::DBCluster")
    assert "{{resolve:secretsmanager:" in str(cluster["Properties"]["MasterUserPassword"])


def test_the_key_of_unsubscribe_links_is_made_up_by_secrets_manager_and_is_one(synthesis: Synthesis) -> None:
    """A comma would make two keys of it, each perhaps too short."""
    _, secret = synthesis.named("AWS::SecretsManager::Secret", "Name", "unsubscribe-keys")
    assert secret["Properties"]["GenerateSecretString"] == {"PasswordLength": 64, "ExcludePunctuation": True}


def test_the_links_in_mails_lead_to_the_unsubscribe_function(synthesis: Synthesis) -> None:
    url, _ = synthesis.one("AWS::Lambda::Url")
    _, email = synthesis.function("email")
    variables = email["Properties"]["Environment"]["Variables"]
    assert variables["UNSUBSCRIBE_URL"] == {"Fn::GetAtt": [url, "FunctionUrl"]}


def test_one_environment_s_stack_holds_the_identity_of_the_domain(synthesis: Synthesis) -> None:
    identities = synthesis.resources("AWS::SES::EmailIdentity")
    if synthesis.environment.name != "prod":
        assert identities == {}
        return
    _, identity = synthesis.one("AWS::SES::EmailIdentity")
    assert identity["Properties"]["EmailIdentity"] == synthesis.environment.sending.domain


def test_mail_leaves_over_tls_through_the_environment_s_configuration_set(synthesis: Synthesis) -> None:
    logical_id, configuration_set = synthesis.one("AWS::SES::ConfigurationSet")
    assert configuration_set["Properties"]["Name"] == synthesis.environment.resource_name("email")
    assert configuration_set["Properties"]["DeliveryOptions"]["TlsPolicy"] == "REQUIRE"
    _, email = synthesis.function("email")
    variables = email["Properties"]["Environment"]["Variables"]
    assert variables["SES_CONFIGURATION_SET"] == {"Ref": logical_id}
    assert variables["DEFAULT_SENDER"] == synthesis.environment.sending.default_sender
    assert float(variables["SES_RATE_SHARE"]) == synthesis.environment.sending.rate_share


def test_logs_end_after_what_the_environment_allows(synthesis: Synthesis) -> None:
    log_groups = synthesis.resources("AWS::Logs::LogGroup").values()
    for log_group in log_groups:
        assert log_group["Properties"]["RetentionInDays"] == synthesis.environment.log_retention_days
    names = {log_group["Properties"].get("LogGroupName") for log_group in log_groups}
    for function in synthesis.resources("AWS::Lambda::Function").values():
        if "FunctionName" in function["Properties"]:
            assert f"/aws/lambda/{function['Properties']['FunctionName']}" in names


def test_names_carry_the_environment(synthesis: Synthesis) -> None:
    prefix = f"campaign-jobs-{synthesis.environment.name}-"
    for type_name, name_property in [
        ("AWS::MSK::Cluster", "ClusterName"),
        ("AWS::MSK::Configuration", "Name"),
        ("AWS::RDS::DBCluster", "DBClusterIdentifier"),
        ("AWS::SecretsManager::Secret", "Name"),
        ("AWS::SQS::Queue", "QueueName"),
        ("AWS::Events::Rule", "Name"),
    ]:
        for resource in synthesis.resources(type_name).values():
            assert resource["Properties"][name_property].startswith(prefix)
