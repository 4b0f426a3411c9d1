-- When the mail of a user reward was asked for last: one that is never settled must not keep others away for ever.
ALTER TABLE campaign_jobs.user_rewards ADD COLUMN mail_asked_at timestamptz;
CREATE INDEX user_rewards_delivering
    ON campaign_jobs.user_rewards (coalesce(claimed_until, mail_asked_at, earned_at)) WHERE status = 'delivering';

-- Until when nothing is sent to an endpoint, because it failed or asked for that.
ALTER TABLE campaign_jobs.webhook_endpoints ADD COLUMN rests_until timestamptz;

CREATE OR REPLACE FUNCTION campaign_jobs.forget_endpoint_failures() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.disabled_at := NULL;
    NEW.disabled_reason := NULL;
    NEW.failing_since := NULL;
    NEW.consecutive_failures := 0;
    NEW.rests_until := NULL;
    RETURN NEW;
END
$$;
