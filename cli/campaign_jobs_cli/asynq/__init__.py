"""The road from Asynq: the tasks of a live Asynq Redis become events (docs/migrating-from-asynq.md)."""
