"""SES's events come back: the configuration set publishes them, a rule collects ours, a function reads the queue."""

from campaign_jobs.catalog import FEEDBACK
from tests.infrastructure.synthesis import Synthesis


def test_the_configuration_set_publishes_what_tells_of_delivery(synthesis: Synthesis) -> None:
    configuration_set, _ = synthesis.one("AWS::SES::ConfigurationSet")
    _, destination = synthesis.one("AWS::SES::ConfigurationSetEventDestination")
    assert destination["Properties"]["ConfigurationSetName"] == {"Ref": configuration_set}
    published = destination["Properties"]["EventDestination"]
    assert published["Enabled"] is True
    assert set(published["MatchingEventTypes"]) == {
        "send",
        "delivery",
        "deliveryDelay",
        "bounce",
        "complaint",
        "reject",
        "renderingFailure",
    }
    # SES takes no other bus than the default one.
    assert str(published["EventBridgeDestination"]["EventBusArn"]).count("event-bus/default") == 1


def test_a_rule_collects_the_events_of_this_environment_alone(synthesis: Synthesis) -> None:
    configuration_set, _ = synthesis.one("AWS::SES::ConfigurationSet")
    queue, _ = synthesis.queue("feedback")
    dead_letters, _ = synthesis.queue("feedback-dead-letters")
    _, rule = synthesis.named("AWS::Events::Rule", "Name", "feedback")
    assert rule["Properties"]["EventPattern"] == {
        "source": ["aws.ses"],
        "detail": {"mail": {"tags": {"ses:configuration-set": [{"Ref": configuration_set}]}}},
    }
    assert "EventBusName" not in rule["Properties"]
    (target,) = rule["Properties"]["Targets"]
    assert target["Arn"] == {"Fn::GetAtt": [queue, "Arn"]}
    assert target["DeadLetterConfig"] == {"Arn": {"Fn::GetAtt": [dead_letters, "Arn"]}}
    # The body is the event as it is.
    assert "Input" not in target
    assert "InputTransformer" not in target


def test_eventbridge_may_send_to_both_queues_and_nobody_else(synthesis: Synthesis) -> None:
    rule, _ = synthesis.named("AWS::Events::Rule", "Name", "feedback")
    from_the_rule = {"ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": [rule, "Arn"]}}}
    for name in ("feedback", "feedback-dead-letters"):
        queue, _ = synthesis.queue(name)
        (policy,) = (
            policy["Properties"]["PolicyDocument"]["Statement"]
            for policy in synthesis.resources("AWS::SQS::QueuePolicy").values()
            if {"Ref": queue} in policy["Properties"]["Queues"]
        )
        allowed = [statement for statement in policy if statement["Effect"] == "Allow"]
        assert allowed
        for statement in allowed:
            assert statement["Principal"] == {"Service": "events.amazonaws.com"}
            assert statement["Condition"] == from_the_rule


def test_the_queue_feeds_the_function_as_the_catalog_has_it(synthesis: Synthesis) -> None:
    queue_id, queue = synthesis.queue("feedback")
    dead_letters, _ = synthesis.queue("feedback-dead-letters")
    function, _ = synthesis.function("feedback")
    assert queue["Properties"]["RedrivePolicy"] == {
        "deadLetterTargetArn": {"Fn::GetAtt": [dead_letters, "Arn"]},
        "maxReceiveCount": FEEDBACK.max_receives,
    }
    # Lambda's advice for batches: six times the function's timeout, and the window.
    visibility = queue["Properties"]["VisibilityTimeout"]
    assert visibility >= 6 * FEEDBACK.timeout_seconds + FEEDBACK.batching_window_seconds
    # So long may the database be away without a message becoming a dead letter.
    assert FEEDBACK.max_receives * visibility >= 60 * 60
    (mapping,) = (
        mapping["Properties"]
        for mapping in synthesis.resources("AWS::Lambda::EventSourceMapping").values()
        if mapping["Properties"]["EventSourceArn"] == {"Fn::GetAtt": [queue_id, "Arn"]}
    )
    assert mapping == {
        "BatchSize": FEEDBACK.batch_size,
        "EventSourceArn": {"Fn::GetAtt": [queue_id, "Arn"]},
        "FunctionName": {"Ref": function},
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "MaximumBatchingWindowInSeconds": FEEDBACK.batching_window_seconds,
        "ScalingConfig": {"MaximumConcurrency": 2},
    }
