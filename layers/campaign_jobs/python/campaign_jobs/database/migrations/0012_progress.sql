-- How far each consumer group has got, and since when each schedule is as it is: what alarms go by.

-- The last heartbeat that a group has got through its function, by partition. Tiny rows that are written each minute, so
-- most of their pages are left free for HOT updates.
CREATE TABLE campaign_jobs.heartbeats (
    consumer_group text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    -- When relay first published one there for this group. A group that never gets one is as old as this.
    awaited_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The record's own time; NULL until the function has had one. It never goes back.
    published_at timestamptz,
    PRIMARY KEY (consumer_group, topic, partition)
) WITH (fillfactor = 20);

-- The present schedule of a scheduled job, as relay last read it from its rule.
CREATE TABLE campaign_jobs.job_schedules (
    job_type text PRIMARY KEY CHECK (job_type IN ('analytics', 'fraud')),
    -- rate(…), cron(…), or 'disabled'.
    schedule text NOT NULL,
    -- When it was first seen, unless a run was missing then: by this schedule none was due before.
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);
