-- What an invocation is at work on, so that a record that kills its process is found out.

-- The records of an invocation's batch, a row for each partition. It goes with the invocation's end, unless that was no
-- orderly one.
CREATE TABLE campaign_jobs.batch_markers (
    consumer_group text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    -- The invocation.
    marker_id uuid NOT NULL,
    first_offset bigint NOT NULL,
    last_offset bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer_group, topic, partition, marker_id),
    CHECK (first_offset <= last_offset)
);

-- How often a record was begun alone, from its lane's retry queue, without an orderly end since.
CREATE TABLE campaign_jobs.solo_starts (
    consumer_group text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    record_offset bigint NOT NULL,
    starts integer NOT NULL CHECK (starts > 0),
    last_started_at timestamptz NOT NULL,
    PRIMARY KEY (consumer_group, topic, partition, record_offset)
);
