-- The tables that services write: campaigns, users, referrals, rewards and user rewards.
-- docs/data-contract.md names the writer of each column.

CREATE SCHEMA IF NOT EXISTS campaign_jobs;

-- What Python's datetime holds too, with room for an hour or a time zone more: neither 'infinity' nor the year 10000, on
-- which whoever reads it would break.
CREATE FUNCTION campaign_jobs.is_moment(moment timestamptz) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN moment BETWEEN timestamptz '1970-01-01 00:00:00+00' AND timestamptz '9999-12-31 00:00:00+00';

-- One mailbox, one normalized address: case, the part after "+", and Gmail's dots make no difference. Where they are all
-- that there is, they are the mailbox's name.
CREATE FUNCTION campaign_jobs.normalize_email(address text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE
    WHEN lower(split_part(btrim(address), '@', 2)) IN ('gmail.com', 'googlemail.com')
    THEN coalesce(
        nullif(replace(split_part(lower(split_part(btrim(address), '@', 1)), '+', 1), '.', ''), ''),
        lower(split_part(btrim(address), '@', 1))
    ) || '@gmail.com'
    ELSE coalesce(
        nullif(split_part(lower(split_part(btrim(address), '@', 1)), '+', 1), ''),
        lower(split_part(btrim(address), '@', 1))
    ) || '@' || lower(split_part(btrim(address), '@', 2))
END;

CREATE TABLE campaign_jobs.campaigns (
    id uuid PRIMARY KEY,
    account_id uuid,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('draft', 'active', 'paused', 'ended')),
    timezone text NOT NULL DEFAULT 'UTC',
    points_per_referral integer NOT NULL DEFAULT 1 CHECK (points_per_referral >= 0),
    -- The request that last set points_per_referral; the latest (timestamp, id) wins.
    points_requested_at timestamptz,
    points_request_id text,
    milestones integer[] NOT NULL DEFAULT '{}',
    from_name text CHECK (length(from_name) <= 100 AND from_name !~ '[[:cntrl:]]'),
    from_email text CHECK (length(from_email) <= 254 AND from_email ~ '^[^[:space:][:cntrl:]@]+@[^[:space:][:cntrl:]@]+$'),
    reply_to text CHECK (length(reply_to) <= 254 AND reply_to ~ '^[^[:space:][:cntrl:]@]+@[^[:space:][:cntrl:]@]+$'),
    public_base_url text CHECK (length(public_base_url) <= 500 AND public_base_url ~ '^https?://[^[:space:]]+$'),
    position_email_min_delta integer NOT NULL DEFAULT 1 CHECK (position_email_min_delta >= 1),
    position_email_cooldown interval NOT NULL DEFAULT '24 hours'
        CHECK (position_email_cooldown BETWEEN '0' AND '10 years'),
    fraud_policy jsonb NOT NULL DEFAULT '{}'
        CHECK (jsonb_typeof(fraud_policy) = 'object' AND length(fraud_policy::text) <= 50000),
    created_at timestamptz NOT NULL DEFAULT now() CHECK (campaign_jobs.is_moment(created_at))
);

CREATE TABLE campaign_jobs.waitlist_users (
    id uuid PRIMARY KEY,
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    email text NOT NULL CHECK (length(email) BETWEEN 3 AND 254),
    email_normalized text GENERATED ALWAYS AS (campaign_jobs.normalize_email(email)) STORED,
    first_name text CHECK (length(first_name) <= 100),
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'verified', 'converted', 'removed', 'blocked')),
    original_position integer NOT NULL CHECK (original_position >= 1),
    referral_code text CHECK (length(referral_code) BETWEEN 1 AND 64),
    referred_by_id uuid CHECK (referred_by_id <> id),
    verification_token text CHECK (length(verification_token) BETWEEN 1 AND 200),
    verified_at timestamptz CHECK (campaign_jobs.is_moment(verified_at)),
    ip inet,
    user_agent text CHECK (length(user_agent) <= 1000),
    device_fingerprint text CHECK (length(device_fingerprint) BETWEEN 1 AND 200),
    marketing_consent_at timestamptz CHECK (campaign_jobs.is_moment(marketing_consent_at)),
    created_at timestamptz NOT NULL DEFAULT now() CHECK (campaign_jobs.is_moment(created_at)),
    touched_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz CHECK (campaign_jobs.is_moment(deleted_at)),
    UNIQUE (campaign_id, id),
    UNIQUE (campaign_id, original_position),
    UNIQUE (campaign_id, referral_code),
    FOREIGN KEY (campaign_id, referred_by_id) REFERENCES campaign_jobs.waitlist_users (campaign_id, id),
    CHECK (deleted_at IS NULL OR status = 'removed'),
    CHECK (status NOT IN ('verified', 'converted') OR verified_at IS NOT NULL)
);
CREATE UNIQUE INDEX waitlist_users_one_per_email
    ON campaign_jobs.waitlist_users (campaign_id, lower(email)) WHERE deleted_at IS NULL;
CREATE INDEX waitlist_users_touched ON campaign_jobs.waitlist_users (touched_at);
CREATE INDEX waitlist_users_created ON campaign_jobs.waitlist_users (created_at);
CREATE INDEX waitlist_users_verified ON campaign_jobs.waitlist_users (verified_at) WHERE verified_at IS NOT NULL;
CREATE INDEX waitlist_users_ip ON campaign_jobs.waitlist_users (campaign_id, ip) WHERE ip IS NOT NULL;
CREATE INDEX waitlist_users_device
    ON campaign_jobs.waitlist_users (campaign_id, device_fingerprint) WHERE device_fingerprint IS NOT NULL;
CREATE INDEX waitlist_users_email_normalized ON campaign_jobs.waitlist_users (campaign_id, email_normalized);

CREATE TABLE campaign_jobs.referrals (
    id uuid PRIMARY KEY,
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    referrer_id uuid NOT NULL,
    referred_id uuid NOT NULL UNIQUE,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'verified', 'converted', 'invalid')),
    created_at timestamptz NOT NULL DEFAULT now() CHECK (campaign_jobs.is_moment(created_at)),
    verified_at timestamptz CHECK (campaign_jobs.is_moment(verified_at)),
    touched_at timestamptz NOT NULL DEFAULT now(),
    CHECK (referrer_id <> referred_id),
    CHECK (status NOT IN ('verified', 'converted') OR verified_at IS NOT NULL),
    FOREIGN KEY (campaign_id, referrer_id) REFERENCES campaign_jobs.waitlist_users (campaign_id, id),
    FOREIGN KEY (campaign_id, referred_id) REFERENCES campaign_jobs.waitlist_users (campaign_id, id)
);
CREATE INDEX referrals_by_referrer ON campaign_jobs.referrals (referrer_id, created_at);
CREATE INDEX referrals_by_campaign ON campaign_jobs.referrals (campaign_id, referrer_id) WHERE status IN ('verified', 'converted');
CREATE INDEX referrals_touched ON campaign_jobs.referrals (touched_at);
CREATE INDEX referrals_created ON campaign_jobs.referrals (created_at);

CREATE TABLE campaign_jobs.webhook_endpoints (
    id uuid PRIMARY KEY,
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    url text NOT NULL CHECK (length(url) BETWEEN 1 AND 2000),
    secret text NOT NULL CHECK (secret ~ '^whsec_[A-Za-z0-9+/]{32,}={0,2}$'),
    previous_secret text CHECK (previous_secret ~ '^whsec_[A-Za-z0-9+/]{32,}={0,2}$'),
    previous_secret_until timestamptz CHECK (campaign_jobs.is_moment(previous_secret_until)),
    -- Set by us when the endpoint answers 410 or keeps failing; a service sets 'enabled' again.
    status text NOT NULL DEFAULT 'enabled' CHECK (status IN ('enabled', 'disabled')),
    disabled_at timestamptz,
    disabled_reason text,
    failing_since timestamptz,
    consecutive_failures integer NOT NULL DEFAULT 0 CHECK (consecutive_failures >= 0),
    created_at timestamptz NOT NULL DEFAULT now() CHECK (campaign_jobs.is_moment(created_at)),
    UNIQUE (campaign_id, id),
    CHECK ((previous_secret IS NULL) = (previous_secret_until IS NULL)),
    -- A base64 text of 4n + 1 characters holds no whole number of bytes.
    CHECK (length(rtrim(substr(secret, 7), '=')) % 4 <> 1),
    CHECK (length(rtrim(substr(previous_secret, 7), '=')) % 4 <> 1)
);

CREATE TABLE campaign_jobs.rewards (
    id uuid PRIMARY KEY,
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    description text CHECK (length(description) <= 2000),
    type text NOT NULL CHECK (type IN ('early_access', 'discount', 'premium_feature', 'merchandise', 'custom')),
    trigger_type text NOT NULL CHECK (trigger_type IN ('referral_count', 'position', 'milestone', 'manual')),
    trigger_value integer CHECK (trigger_value >= 1),
    delivery_method text NOT NULL CHECK (delivery_method IN ('email', 'webhook', 'manual')),
    webhook_endpoint_id uuid,
    created_at timestamptz NOT NULL DEFAULT now() CHECK (campaign_jobs.is_moment(created_at)),
    UNIQUE (campaign_id, id),
    FOREIGN KEY (campaign_id, webhook_endpoint_id) REFERENCES campaign_jobs.webhook_endpoints (campaign_id, id),
    CHECK ((delivery_method = 'webhook') = (webhook_endpoint_id IS NOT NULL)),
    CHECK ((trigger_type = 'manual') = (trigger_value IS NULL))
);

CREATE TABLE campaign_jobs.user_rewards (
    id uuid PRIMARY KEY,
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    user_id uuid NOT NULL,
    reward_id uuid NOT NULL,
    occurrence integer NOT NULL DEFAULT 1 CHECK (occurrence >= 1),
    status text NOT NULL DEFAULT 'earned'
        CHECK (status IN ('earned', 'delivering', 'delivered', 'failed', 'redeemed', 'revoked', 'expired')),
    -- What the person receives, a code for example; available to the email template and in the webhook's body.
    data jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(data) = 'object'),
    earned_at timestamptz NOT NULL DEFAULT now() CHECK (campaign_jobs.is_moment(earned_at)),
    expires_at timestamptz CHECK (campaign_jobs.is_moment(expires_at)),
    -- From here on: written by the reward job, and by the email job when it settles a reward.
    delivered_at timestamptz,
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    last_error text,
    claim_token uuid,
    claimed_until timestamptz,
    -- A delivery that a hold stopped; the dismissal of the case emits a new one and clears it.
    held_at timestamptz,
    -- The event whose delivery waits for a disabled endpoint; relay emits it again under this id.
    parked_event_id text,
    parked_at timestamptz,
    UNIQUE (reward_id, user_id, occurrence),
    FOREIGN KEY (campaign_id, user_id) REFERENCES campaign_jobs.waitlist_users (campaign_id, id),
    FOREIGN KEY (campaign_id, reward_id) REFERENCES campaign_jobs.rewards (campaign_id, id),
    -- A service may redeem, revoke or expire a reward while its delivery is on the way; recording then adds delivered_at.
    CHECK (status <> 'delivered' OR delivered_at IS NOT NULL),
    CHECK ((claim_token IS NULL) = (claimed_until IS NULL)),
    CHECK (claim_token IS NULL OR status IN ('delivering', 'redeemed', 'revoked', 'expired')),
    CHECK ((parked_event_id IS NULL) = (parked_at IS NULL)),
    CHECK (parked_event_id IS NULL OR status IN ('earned', 'redeemed', 'revoked', 'expired')),
    CHECK (held_at IS NULL OR status IN ('earned', 'redeemed', 'revoked', 'expired'))
);
CREATE INDEX user_rewards_by_user ON campaign_jobs.user_rewards (user_id);
CREATE INDEX user_rewards_delivered ON campaign_jobs.user_rewards (delivered_at) WHERE delivered_at IS NOT NULL;
CREATE INDEX user_rewards_held ON campaign_jobs.user_rewards (user_id) WHERE held_at IS NOT NULL;
CREATE INDEX user_rewards_parked ON campaign_jobs.user_rewards (reward_id, parked_at) WHERE parked_at IS NOT NULL;

-- A campaign's time zone decides where its hours begin, so it is fixed once the campaign has a user.
CREATE FUNCTION campaign_jobs.check_campaign_timezone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_timezone_names WHERE name = NEW.timezone) THEN
        RAISE EXCEPTION 'campaign % has the time zone "%", which is not an IANA time zone name', NEW.id, NEW.timezone
            USING ERRCODE = 'check_violation';
    END IF;
    IF TG_OP = 'UPDATE' AND EXISTS (SELECT FROM campaign_jobs.waitlist_users WHERE campaign_id = NEW.id) THEN
        RAISE EXCEPTION 'the time zone of campaign % is fixed, because the campaign has users', NEW.id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER campaigns_timezone_insert BEFORE INSERT ON campaign_jobs.campaigns
    FOR EACH ROW EXECUTE FUNCTION campaign_jobs.check_campaign_timezone();
CREATE TRIGGER campaigns_timezone_update BEFORE UPDATE OF timezone ON campaign_jobs.campaigns
    FOR EACH ROW WHEN (OLD.timezone IS DISTINCT FROM NEW.timezone) EXECUTE FUNCTION campaign_jobs.check_campaign_timezone();
