-- Each attempt to deliver a webhook, for the people who ask why it did not arrive.
CREATE TABLE campaign_jobs.webhook_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_reward_id uuid NOT NULL REFERENCES campaign_jobs.user_rewards,
    endpoint_id uuid NOT NULL REFERENCES campaign_jobs.webhook_endpoints,
    event_id text NOT NULL,
    attempted_at timestamptz NOT NULL,
    duration_ms integer NOT NULL CHECK (duration_ms >= 0),
    status_code integer,
    error text
);
CREATE INDEX webhook_attempts_by_user_reward ON campaign_jobs.webhook_attempts (user_reward_id);
