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

-- An endpoint that a service enables again starts with a clean record; else its next failure would disable it at once.
CREATE FUNCTION campaign_jobs.forget_endpoint_failures() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.disabled_at := NULL;
    NEW.disabled_reason := NULL;
    NEW.failing_since := NULL;
    NEW.consecutive_failures := 0;
    RETURN NEW;
END
$$;
CREATE TRIGGER webhook_endpoints_enabled_again BEFORE UPDATE OF status ON campaign_jobs.webhook_endpoints
    FOR EACH ROW WHEN (OLD.status = 'disabled' AND NEW.status = 'enabled')
    EXECUTE FUNCTION campaign_jobs.forget_endpoint_failures();
