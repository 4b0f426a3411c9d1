"""The environments that can be deployed. A new one is one more value here, listed in ENVIRONMENTS."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from campaign_jobs.errors import SettingsError
from infra.allowed import is_share
from infra.environment_settings import Environment, NewDatabase, NewKafka, NewNetwork, Sending

DEFAULT: Final = "dev"

# Replace the domain and the senders by your own before the first deployment.
DEV: Final = Environment(
    name="dev",
    network=NewNetwork(availability_zones=2, nat="instance", nats=1),
    # The smallest brokers cannot run KRaft.
    kafka=NewKafka(version="3.9.x", instance_type="kafka.t3.small", brokers=2, volume_gib=4),
    database=NewDatabase(min_capacity=0.5, max_capacity=2, reader=False),
    sending=Sending(
        domain="example.com", default_sender="dev@example.com", owns_identity=False, rate_share=0.1
    ),
    retain_data=False,
    log_retention_days=7,
)

STAGING: Final = Environment(
    name="staging",
    network=NewNetwork(
        availability_zones=2, nat="gateway", nats=1, cidr="10.41.0.0/16", logs_rejected_traffic=True
    ),
    kafka=NewKafka(version="3.9.x.kraft", instance_type="kafka.m7g.large", brokers=2, volume_gib=100),
    database=NewDatabase(min_capacity=0.5, max_capacity=8, reader=False),
    sending=replace(DEV.sending, default_sender="staging@example.com"),
    retain_data=True,
    log_retention_days=30,
)

PROD: Final = Environment(
    name="prod",
    network=NewNetwork(
        availability_zones=3, nat="gateway", nats=3, cidr="10.42.0.0/16", logs_rejected_traffic=True
    ),
    kafka=NewKafka(version="3.9.x.kraft", instance_type="kafka.m7g.large", brokers=3, volume_gib=500),
    database=NewDatabase(min_capacity=0.5, max_capacity=32, reader=True),
    sending=Sending(
        domain="example.com", default_sender="no-reply@example.com", owns_identity=True, rate_share=0.8
    ),
    retain_data=True,
    log_retention_days=90,
)

ENVIRONMENTS: Final = (DEV, STAGING, PROD)


def load(name: object, environments: tuple[Environment, ...] = ENVIRONMENTS) -> Environment:
    """The environment of that name, as given by `-c env=`; the default one where no name is given.

    Raises SettingsError where the name is unknown or any environment is wrong: they share an account, so one
    environment's mistake is the others' concern.
    """
    by_name = {environment.name: environment for environment in environments}
    wanted = DEFAULT if name is None else name
    problems = [problem for environment in environments for problem in environment.problems()]
    problems += _wrong_in_one_account(environments)
    if not isinstance(wanted, str) or wanted not in by_name:
        problems.insert(0, f"env={wanted!r}: allowed is -c env= with one of {', '.join(by_name)}")
    if problems:
        raise SettingsError(problems)
    return by_name[str(wanted)]


def _wrong_in_one_account(environments: tuple[Environment, ...]) -> Iterator[str]:
    names = [environment.name for environment in environments]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"name={name!r}: allowed is once"
    for domain in sorted({environment.sending.domain for environment in environments}):
        owners = [e.name for e in environments if e.sending.domain == domain and e.sending.owns_identity]
        if len(owners) > 1:
            yield f"sending.owns_identity={owners!r} for {domain}: allowed is True in at most one environment"
    shares = {environment.name: environment.sending.rate_share for environment in environments}
    # Rounded because 0.1 + 0.1 + 0.8 is a little more than 1 in binary.
    if all(is_share(share) for share in shares.values()) and round(sum(shares.values()), 6) > 1:
        yield f"sending.rate_share={shares!r}: allowed is a sum of at most 1"
