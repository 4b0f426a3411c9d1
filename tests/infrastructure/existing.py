"""What an account may have already, for environments that take it rather than make their own."""

from infra.environment_settings import CustomDomain, ExistingDatabase, ExistingKafka, ExistingNetwork

EXISTING_NETWORK = ExistingNetwork(
    vpc_id="vpc-0aa11bb22cc33dd44",
    availability_zones=("eu-central-1a", "eu-central-1b"),
    private_subnet_ids=("subnet-0aaaaaaaaaaaaaaa1", "subnet-0aaaaaaaaaaaaaaa2"),
    private_route_table_ids=("rtb-0aaaaaaaaaaaaaaa1", "rtb-0aaaaaaaaaaaaaaa2"),
    database_subnet_ids=("subnet-0bbbbbbbbbbbbbbb1", "subnet-0bbbbbbbbbbbbbbb2"),
)
EXISTING_KAFKA = ExistingKafka(
    cluster_arn=(
        "arn:aws:kafka:eu-central-1:111122223333:cluster/company-events/"
        "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0-7"
    ),
    security_group_id="sg-0ccccccccccccccc1",
    creates_topic=True,
)
EXISTING_DATABASE = ExistingDatabase(
    secret_arn="arn:aws:secretsmanager:eu-central-1:111122223333:secret:company/postgres-a1B2c3",
    security_group_id="sg-0ddddddddddddddd1",
    port=5433,
)
CUSTOM_DOMAIN = CustomDomain(
    name="mail.example.com",
    certificate_arn=(
        "arn:aws:acm:eu-central-1:111122223333:certificate/12345678-90ab-cdef-1234-567890abcdef"
    ),
)
