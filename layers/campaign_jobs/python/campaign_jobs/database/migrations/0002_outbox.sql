-- Follow-up events, written in the transaction that causes them; relay publishes them to Kafka.
CREATE TABLE campaign_jobs.outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id text NOT NULL UNIQUE,
    partition_key text NOT NULL,
    event jsonb NOT NULL CHECK (jsonb_typeof(event) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz,
    -- Why Kafka will never take it; relay leaves it here for people to see.
    refused text,
    CHECK (published_at IS NULL OR refused IS NULL)
);
CREATE INDEX outbox_unpublished ON campaign_jobs.outbox (id) WHERE published_at IS NULL AND refused IS NULL;

-- A lease names the one process that may do something for the next few seconds; no transaction stays open meanwhile.
CREATE TABLE campaign_jobs.leases (
    name text PRIMARY KEY,
    owner uuid NOT NULL,
    expires_at timestamptz NOT NULL,
    -- The process that waits for the lease; the owner yields to it.
    waiting uuid,
    waiting_until timestamptz
);
