-- What a check found: one row for each (check, subject, evidence), updated rather than repeated.
CREATE TABLE campaign_jobs.fraud_signals (
    user_id uuid NOT NULL REFERENCES campaign_jobs.waitlist_users,
    "check" text NOT NULL CHECK ("check" IN
        ('self_referral', 'velocity', 'fake_email', 'bot', 'duplicate_ip', 'duplicate_device')),
    evidence_key text NOT NULL,
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    weight integer NOT NULL CHECK (weight BETWEEN 0 AND 100),
    -- How much of it there is (users on one address, referrals in an hour), and the band it falls in.
    magnitude integer NOT NULL CHECK (magnitude >= 1),
    band integer NOT NULL CHECK (band >= 0),
    evidence jsonb NOT NULL CHECK (jsonb_typeof(evidence) = 'object'),
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, "check", evidence_key)
);
CREATE INDEX fraud_signals_by_key ON campaign_jobs.fraud_signals (campaign_id, "check", evidence_key);

-- Signals combine into one open case for each user.
CREATE TABLE campaign_jobs.fraud_cases (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    user_id uuid NOT NULL REFERENCES campaign_jobs.waitlist_users,
    status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'confirmed', 'dismissed', 'retracted')),
    -- An open case with `holding` withholds credit and rewards; so does a confirmed one.
    holding boolean NOT NULL,
    risk_score integer NOT NULL CHECK (risk_score BETWEEN 0 AND 100),
    evidence jsonb NOT NULL CHECK (jsonb_typeof(evidence) = 'array'),
    rules_version text NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    decided_at timestamptz,
    decision_reason text,
    CHECK ((status IN ('confirmed', 'dismissed')) = (decided_at IS NOT NULL)),
    CHECK ((decided_at IS NULL) = (decision_reason IS NULL))
);
CREATE UNIQUE INDEX fraud_cases_one_open ON campaign_jobs.fraud_cases (user_id) WHERE status = 'open';
CREATE INDEX fraud_cases_by_campaign ON campaign_jobs.fraud_cases (campaign_id, status);
CREATE INDEX fraud_cases_holding ON campaign_jobs.fraud_cases (user_id)
    WHERE status = 'confirmed' OR (status = 'open' AND holding);

-- Evidence that somebody has looked at and dismissed; it opens no case again unless its band rises.
CREATE TABLE campaign_jobs.fraud_dismissals (
    user_id uuid NOT NULL REFERENCES campaign_jobs.waitlist_users,
    "check" text NOT NULL,
    evidence_key text NOT NULL,
    band integer NOT NULL,
    dismissed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, "check", evidence_key)
);

-- A hold is derived, never a status: who has an open holding case or a confirmed one.
CREATE VIEW campaign_jobs.held_users AS
    SELECT DISTINCT user_id FROM campaign_jobs.fraud_cases
    WHERE status = 'confirmed' OR (status = 'open' AND holding);

-- touched_at says when a user or referral last changed in a way that a fraud check can see.
CREATE FUNCTION campaign_jobs.set_touched_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.touched_at := now();
    RETURN NEW;
END
$$;
CREATE TRIGGER waitlist_users_touched_insert BEFORE INSERT ON campaign_jobs.waitlist_users
    FOR EACH ROW EXECUTE FUNCTION campaign_jobs.set_touched_at();
CREATE TRIGGER waitlist_users_touched_update
    BEFORE UPDATE OF campaign_id, email, status, ip, user_agent, device_fingerprint, referred_by_id, created_at, deleted_at
    ON campaign_jobs.waitlist_users
    FOR EACH ROW EXECUTE FUNCTION campaign_jobs.set_touched_at();
CREATE TRIGGER referrals_touched_insert BEFORE INSERT ON campaign_jobs.referrals
    FOR EACH ROW EXECUTE FUNCTION campaign_jobs.set_touched_at();
CREATE TRIGGER referrals_touched_update
    BEFORE UPDATE OF campaign_id, referrer_id, referred_id, status, created_at ON campaign_jobs.referrals
    FOR EACH ROW EXECUTE FUNCTION campaign_jobs.set_touched_at();
