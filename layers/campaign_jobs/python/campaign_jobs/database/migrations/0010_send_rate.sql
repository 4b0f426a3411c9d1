-- How many mails may still be sent now, by all functions together: one token bucket for each rate that somebody outside
-- sets. A tiny row that is written for each grant, so most of its page is left free for HOT updates.
CREATE TABLE campaign_jobs.send_tokens (
    name text PRIMARY KEY,
    -- Mails a second; NULL until it has been looked up.
    rate double precision CHECK (rate > 0),
    tokens double precision NOT NULL DEFAULT 0 CHECK (tokens >= 0),
    refilled_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Nothing is granted, and nothing refilled, before it.
    paused_until timestamptz NOT NULL DEFAULT '-infinity',
    looked_up_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 10);
