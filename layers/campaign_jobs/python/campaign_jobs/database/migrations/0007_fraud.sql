-- What a check found: one row for each (check, subject, evidence), updated rather than repeated.
CREATE TABLE campaign_jobs.fraud_signals (
    user_id uuid NOT NULL REFERENCES campaign_jobs.waitlist_users,
    "check" text NOT NULL CHECK ("check" IN
        ('self_referral', 'velocity', 'fake_email', 'bot', 'duplicate_ip', 'duplicate_device')),
    -- What the evidence is about: an address, a device, a mailbox, a pair of users ... A mailbox may be twice as long as its
    -- address of 254 characters, because some locales make two characters of one in lower case.
    evidence_key text NOT NULL CHECK (length(evidence_key) BETWEEN 1 AND 600),
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    weight integer NOT NULL CHECK (weight BETWEEN 0 AND 100),
    -- How much of it there is: users on one address, referrals within an hour ...
    magnitude integer NOT NULL CHECK (magnitude >= 1),
    -- A user without whom the signal would not be there, although it is not theirs: the other side of a self-referral,
    -- the earliest account of a mailbox. When that user changes, the signal is looked at again.
    related_user_id uuid REFERENCES campaign_jobs.waitlist_users,
    evidence jsonb NOT NULL CHECK (jsonb_typeof(evidence) = 'object'),
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, "check", evidence_key)
);
CREATE INDEX fraud_signals_by_key ON campaign_jobs.fraud_signals (campaign_id, "check", evidence_key);
CREATE INDEX fraud_signals_by_related_user ON campaign_jobs.fraud_signals (related_user_id)
    WHERE related_user_id IS NOT NULL;

-- Signals combine into one open case for each user.
CREATE TABLE campaign_jobs.fraud_cases (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    user_id uuid NOT NULL REFERENCES campaign_jobs.waitlist_users,
    status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'confirmed', 'dismissed', 'retracted')),
    -- An open case with `holding` withholds credit and rewards; so does a confirmed one.
    holding boolean NOT NULL,
    -- The campaign's policy wants the user blocked while the case is open.
    blocking boolean NOT NULL DEFAULT false,
    -- The status that the user had when we blocked them; given back when the block ends.
    blocked_from text CHECK (blocked_from IN ('pending', 'verified', 'converted')),
    risk_score integer NOT NULL CHECK (risk_score BETWEEN 0 AND 100),
    evidence jsonb NOT NULL CHECK (jsonb_typeof(evidence) = 'array'),
    rules_version text NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    decided_at timestamptz,
    decision_reason text,
    CHECK (holding OR NOT blocking),
    CHECK ((status IN ('confirmed', 'dismissed')) = (decided_at IS NOT NULL)),
    CHECK ((decided_at IS NULL) = (decision_reason IS NULL))
);
CREATE UNIQUE INDEX fraud_cases_one_open ON campaign_jobs.fraud_cases (user_id) WHERE status = 'open';
CREATE INDEX fraud_cases_by_user ON campaign_jobs.fraud_cases (user_id);
CREATE INDEX fraud_cases_by_campaign ON campaign_jobs.fraud_cases (campaign_id, status);
CREATE INDEX fraud_cases_holding ON campaign_jobs.fraud_cases (user_id)
    WHERE status = 'confirmed' OR (status = 'open' AND holding) OR blocked_from IS NOT NULL;
CREATE INDEX fraud_cases_blocking ON campaign_jobs.fraud_cases (user_id) WHERE status = 'open' AND blocking;
CREATE INDEX fraud_cases_blocked ON campaign_jobs.fraud_cases (user_id) WHERE blocked_from IS NOT NULL;

-- Evidence that somebody has looked at and dismissed; it opens no case again unless its band rises.
CREATE TABLE campaign_jobs.fraud_dismissals (
    user_id uuid NOT NULL REFERENCES campaign_jobs.waitlist_users,
    "check" text NOT NULL,
    evidence_key text NOT NULL,
    band integer NOT NULL CHECK (band >= 0),
    dismissed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, "check", evidence_key)
);

-- A hold is derived, never a status: who has an open holding case or a confirmed one. Where a case has ended without a
-- decision, the user is unblocked a moment later, and a delivery that came in between would find them blocked by nobody
-- who brings it back; so a hold lasts until its block is taken back.
CREATE VIEW campaign_jobs.held_users AS
    SELECT DISTINCT user_id FROM campaign_jobs.fraud_cases
    WHERE status = 'confirmed' OR (status = 'open' AND holding) OR blocked_from IS NOT NULL;

-- touched_at says when a user or referral last changed; whatever a service writes there itself does not count, because
-- the fraud job's watermark stands on it. It is the start of the writing transaction, and never goes back.
CREATE FUNCTION campaign_jobs.set_touched_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.touched_at := CASE TG_OP WHEN 'INSERT' THEN now() ELSE greatest(OLD.touched_at, now()) END;
    RETURN NEW;
END
$$;
CREATE TRIGGER waitlist_users_touched BEFORE INSERT OR UPDATE ON campaign_jobs.waitlist_users
    FOR EACH ROW EXECUTE FUNCTION campaign_jobs.set_touched_at();
CREATE TRIGGER referrals_touched BEFORE INSERT OR UPDATE ON campaign_jobs.referrals
    FOR EACH ROW EXECUTE FUNCTION campaign_jobs.set_touched_at();

-- A referral that goes away, or moves to other people, leaves nothing behind to find its former sides by. With its
-- owner's rights, because touched_at is not a service's to write.
CREATE FUNCTION campaign_jobs.touch_former_sides() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    UPDATE campaign_jobs.waitlist_users SET touched_at = now() WHERE id IN (OLD.referrer_id, OLD.referred_id);
    RETURN NULL;
END
$$;
CREATE TRIGGER referrals_deleted AFTER DELETE ON campaign_jobs.referrals
    FOR EACH ROW EXECUTE FUNCTION campaign_jobs.touch_former_sides();
CREATE TRIGGER referrals_moved AFTER UPDATE OF referrer_id, referred_id ON campaign_jobs.referrals FOR EACH ROW
    WHEN ((OLD.referrer_id, OLD.referred_id) IS DISTINCT FROM (NEW.referrer_id, NEW.referred_id))
    EXECUTE FUNCTION campaign_jobs.touch_former_sides();
