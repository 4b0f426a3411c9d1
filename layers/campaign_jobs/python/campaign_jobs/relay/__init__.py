"""Publishes the outbox to Kafka, and brings back what waits in rows: the only writer to Kafka besides the services."""
