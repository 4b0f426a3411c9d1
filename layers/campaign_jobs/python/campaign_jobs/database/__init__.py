"""PostgreSQL: the connection, batches that survive a bad row, and migrations."""
