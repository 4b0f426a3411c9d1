-- One row must not stop relay, which reads the next rows in one statement: jsonb holds in two kilobytes numbers that take a
-- gigabyte to write out. An event that fits into a record takes a little more here than there, and far from twice as much.
ALTER TABLE campaign_jobs.outbox
    ADD CONSTRAINT outbox_event_fits CHECK (octet_length(event::text) <= 524288),
    ADD CONSTRAINT outbox_partition_key_fits CHECK (octet_length(partition_key) <= 1000);
