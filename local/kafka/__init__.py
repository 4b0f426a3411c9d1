"""Apache Kafka itself, embedded: a Java runtime from a wheel, the jars from Maven Central, no Docker."""

from local.kafka.broker import KafkaBroker
from local.kafka.jars import JarError, ensure_jars
from local.kafka.topics import TopicError, create_topic

__all__ = ["JarError", "KafkaBroker", "TopicError", "create_topic", "ensure_jars"]
