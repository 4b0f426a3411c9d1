"""Handlers of resource types that ministack refuses or leaves incomplete. They run in ministack's process."""

import base64
import json
import os
import string
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from ministack.services import lambda_svc, msk, rds, secretsmanager
from ministack.services.cloudformation.provisioners import _RESOURCE_HANDLERS

from local.emulator.backing_client import ask_backing
from local.emulator.resource_types import listed

FUNCTION_ENVIRONMENT: Final = "EMULATOR_FUNCTION_ENVIRONMENT"

Properties = dict[str, Any]
Created = tuple[str, dict[str, Any]]
Handler = dict[str, Callable[..., Any]]


def install() -> None:
    """Extend ministack's table of resource types."""
    for resource_type in listed()["faked"]:
        _RESOURCE_HANDLERS.setdefault(resource_type, _placeholder(resource_type))
    _RESOURCE_HANDLERS["AWS::MSK::Cluster"] = {"create": _create_cluster, "delete": _delete_cluster}
    _RESOURCE_HANDLERS["AWS::MSK::Configuration"] = {
        "create": _create_configuration,
        "delete": lambda arn, properties: msk._configurations.pop(arn, None),
    }
    _RESOURCE_HANDLERS["AWS::MSK::Topic"] = {
        "create": _create_topic,
        "update": _update_topic,
        "delete": _delete_topic,
    }
    for resource_type, wrap in _WRAPPED.items():
        # A copy, because ministack's own handlers call each other by the original.
        _RESOURCE_HANDLERS[resource_type] = wrap(dict(_RESOURCE_HANDLERS[resource_type]))


def _placeholder(resource_type: str) -> Handler:
    service, kind = resource_type.split("::")[1:]

    def create(logical_id: str, properties: Properties, stack_name: str) -> Created:
        identifier = f"{service}-{kind}-{uuid.uuid4().hex[:17]}".lower()
        return identifier, dict.fromkeys(("Id", "Arn", "AllocationId", f"{kind}Id"), identifier)

    return {
        "create": create,
        "update": lambda identifier, old, new, stack_name: (
            identifier,
            create("", new, stack_name)[1],
        ),
        "delete": lambda identifier, properties: None,
    }


# MSK: ministack knows the service, but not its resource types.


def _create_cluster(logical_id: str, properties: Properties, stack_name: str) -> Created:
    arn = _answer(msk._create_cluster(json.dumps(_in_camel_case(properties)).encode()))["clusterArn"]
    return arn, {"Arn": arn, "CurrentVersion": msk._clusters[arn]["CurrentVersion"]}


def _delete_cluster(arn: str, properties: Properties) -> None:
    msk._delete_cluster(arn)


def _create_configuration(logical_id: str, properties: Properties, stack_name: str) -> Created:
    # The API takes in base64 what a template holds as text.
    encoded = base64.b64encode(properties["ServerProperties"].encode()).decode("ascii")
    request = {**_in_camel_case(properties), "serverProperties": encoded}
    answer = _answer(msk._create_configuration(json.dumps(request).encode()))
    return answer["arn"], {
        "Arn": answer["arn"],
        "LatestRevision.Revision": answer["latestRevision"]["revision"],
    }


def _create_topic(logical_id: str, properties: Properties, stack_name: str) -> Created:
    name = properties["TopicName"]
    ask_backing("POST", f"topics/{name}", {"partitions": int(properties["PartitionCount"])})
    arn = f"{properties['ClusterArn'].replace(':cluster/', ':topic/')}/{name}"
    return arn, {"TopicArn": arn}


def _update_topic(arn: str, old: Properties, new: Properties, stack_name: str) -> Created:
    raise ValueError(f"the emulator does not change a topic: {old} to {new}")


def _delete_topic(arn: str, properties: Properties) -> None:
    ask_backing("DELETE", f"topics/{properties['TopicName']}")


# RDS: ministack writes a cluster down without a server behind it.


def _with_database(handler: Handler) -> Handler:
    create, delete = handler["create"], handler["delete"]

    def create_with_database(logical_id: str, properties: Properties, stack_name: str) -> Created:
        identifier, attributes = create(logical_id, properties, stack_name)
        owner = {name: properties[name] for name in ("MasterUsername", "MasterUserPassword")}
        server = ask_backing("POST", f"databases/{properties['DatabaseName']}", owner)
        cluster = rds._clusters[identifier]
        cluster.update(Endpoint=server["host"], ReaderEndpoint=server["host"], Port=server["port"])
        return identifier, {
            **attributes,
            "Endpoint.Address": server["host"],
            "Endpoint.Port": str(server["port"]),
            "ReadEndpoint.Address": server["host"],
        }

    def delete_with_database(identifier: str, properties: Properties) -> None:
        delete(identifier, properties)
        owner = {"MasterUsername": properties["MasterUsername"]}
        ask_backing("DELETE", f"databases/{properties['DatabaseName']}", owner)

    return {**handler, "create": create_with_database, "delete": delete_with_database}


# Secrets Manager: ministack returns the name where AWS returns the ARN, and does not exclude punctuation.


def _with_arn(handler: Handler) -> Handler:
    create, update, delete = handler["create"], handler["update"], handler["delete"]

    def completed(properties: Properties) -> Properties:
        generate = properties.get("GenerateSecretString") or {}
        if not generate.get("ExcludePunctuation"):
            return properties
        return {**properties, "GenerateSecretString": {**generate, "ExcludeCharacters": string.punctuation}}

    def create_with_arn(logical_id: str, properties: Properties, stack_name: str) -> Created:
        _, attributes = create(logical_id, completed(properties), stack_name)
        return attributes["Arn"], attributes

    def update_by_arn(
        arn: str, old: Properties, new: Properties, stack_name: str, logical_id: str | None = None
    ) -> Created:
        name, _ = secretsmanager._resolve(arn)
        _, attributes = update(name, completed(old), completed(new), stack_name, logical_id)
        return attributes["Arn"], attributes

    def delete_by_arn(arn: str, properties: Properties) -> None:
        name, _ = secretsmanager._resolve(arn)
        delete(name, properties)

    return {**handler, "create": create_with_arn, "update": update_by_arn, "delete": delete_by_arn}


# Lambda


def _with_environment(handler: Handler) -> Handler:
    """Functions get what tells them of this machine; a variable that the stack sets to something is replaced."""
    create, update = handler["create"], handler["update"]
    ours: Mapping[str, Mapping[str, str]] = json.loads(os.environ[FUNCTION_ENVIRONMENT])

    def changed(properties: Properties) -> Properties:
        variables = dict((properties.get("Environment") or {}).get("Variables") or {})
        replaced = {name: value for name, value in ours["replaced"].items() if name in variables}
        return {**properties, "Environment": {"Variables": {**variables, **replaced, **ours["added"]}}}

    def create_changed(logical_id: str, properties: Properties, stack_name: str) -> Created:
        created: Created = create(logical_id, changed(properties), stack_name)
        return created

    def update_changed(
        identifier: str, old: Properties, new: Properties, stack_name: str, logical_id: str | None = None
    ) -> Created:
        updated: Created = update(identifier, changed(old), changed(new), stack_name, logical_id)
        return updated

    return {**handler, "create": create_changed, "update": update_changed}


_OF_KAFKA: Final = ("Topics", "AmazonManagedKafkaEventSourceConfig")


def _without_poller(handler: Handler) -> Handler:
    """Mappings are written down whole, and left to local/emulator/mappings.py."""
    create, update = handler["create"], handler["update"]

    def complete(created: Created, properties: Properties) -> Created:
        mapping = lambda_svc._esms[created[0]]
        mapping.update({name: properties[name] for name in _OF_KAFKA if name in properties})
        # Only ministack's own poller looks at it; what it returns to callers is State.
        mapping["Enabled"] = False
        return created

    return {
        **handler,
        "create": lambda logical_id, properties, stack_name: complete(
            create(logical_id, properties, stack_name), properties
        ),
        "update": lambda identifier, old, new, stack_name: complete(
            update(identifier, old, new, stack_name), new
        ),
    }


_deleted_log_groups: set[str] = set()
_write_logs = lambda_svc._emit_lambda_logs


def _without_late_logs(handler: Handler) -> Handler:
    """A run that outlives its function must not create the log group again: in AWS its role could not."""
    create, delete = handler["create"], handler["delete"]

    def create_again(logical_id: str, properties: Properties, stack_name: str) -> Created:
        created: Created = create(logical_id, properties, stack_name)
        _deleted_log_groups.discard(created[0])
        return created

    def delete_for_good(name: str, properties: Properties) -> None:
        _deleted_log_groups.add(name)
        delete(name, properties)

    def write_logs(function: Mapping[str, Any], *arguments: Any, **more: Any) -> None:
        configuration = function.get("config") or function
        if (configuration.get("LoggingConfig") or {}).get("LogGroup") not in _deleted_log_groups:
            _write_logs(function, *arguments, **more)

    lambda_svc._emit_lambda_logs = write_logs
    return {**handler, "create": create_again, "delete": delete_for_good}


_WRAPPED: Final[dict[str, Callable[[Handler], Handler]]] = {
    "AWS::Lambda::EventSourceMapping": _without_poller,
    "AWS::Lambda::Function": _with_environment,
    "AWS::Logs::LogGroup": _without_late_logs,
    "AWS::RDS::DBCluster": _with_database,
    "AWS::SecretsManager::Secret": _with_arn,
}


def _answer(answer: tuple[int, Any, bytes]) -> Any:
    status, _, body = answer
    if status >= 400:
        raise ValueError(body.decode())
    return json.loads(body)


def _in_camel_case(value: Any) -> Any:
    if isinstance(value, dict):
        return {name[:1].lower() + name[1:]: _in_camel_case(part) for name, part in value.items()}
    return [_in_camel_case(part) for part in value] if isinstance(value, list) else value
