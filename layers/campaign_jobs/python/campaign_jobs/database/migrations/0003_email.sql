-- Templates that override the built-in ones; campaign_id NULL overrides them for every campaign.
CREATE TABLE campaign_jobs.email_templates (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    campaign_id uuid REFERENCES campaign_jobs.campaigns,
    type text NOT NULL CHECK (type IN ('verification', 'welcome', 'position_update', 'reward_earned', 'milestone')),
    locale text NOT NULL DEFAULT 'en' CHECK (locale ~ '^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$'),
    version integer NOT NULL DEFAULT 1 CHECK (version >= 1),
    enabled boolean NOT NULL DEFAULT false,
    subject text NOT NULL CHECK (length(subject) BETWEEN 1 AND 500),
    html text NOT NULL CHECK (length(html) BETWEEN 1 AND 100000),
    text text NOT NULL CHECK (length(text) BETWEEN 1 AND 100000),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (campaign_id, type, locale, version)
);
CREATE UNIQUE INDEX email_templates_one_enabled
    ON campaign_jobs.email_templates (campaign_id, type, locale) NULLS NOT DISTINCT WHERE enabled;

-- What a mail of an event carries as its SES tag `message`: letters and digits, as SES wants them, whatever the id is.
CREATE FUNCTION campaign_jobs.message_tag(event_id text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT left(encode(sha256(convert_to(event_id, 'UTF8')), 'hex'), 32)
$$;

-- One row for each email event: the event's idempotency key, and what became of the mail.
CREATE TABLE campaign_jobs.email_messages (
    event_id text PRIMARY KEY,
    tag text NOT NULL UNIQUE GENERATED ALWAYS AS (campaign_jobs.message_tag(event_id)) STORED,
    type text NOT NULL CHECK (type IN ('verification', 'welcome', 'position_update', 'reward_earned', 'milestone')),
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    user_id uuid NOT NULL,
    user_reward_id uuid REFERENCES campaign_jobs.user_rewards,
    -- What may be mailed only once: used up by a claimed or an accepted mail, and by nothing else.
    once_key text,
    status text NOT NULL CHECK (status IN ('claimed', 'released', 'accepted', 'skipped', 'parked', 'failed')),
    reason text,
    claim_token uuid,
    claimed_until timestamptz,
    ses_message_id text,
    -- The position that a position_update told; what "better than last notified" compares with.
    position integer,
    accepted_at timestamptz,
    -- The furthest that SES has reported under the tag, and since when: it only ever advances.
    delivery_status text CHECK (delivery_status IN ('sent', 'delayed', 'soft_bounced', 'delivered', 'rendering_failed',
                                                    'rejected', 'bounced', 'complained')),
    delivery_status_at timestamptz,
    -- The event as it came, while it is parked; relay emits it again under its id.
    parked_event jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (campaign_id, user_id) REFERENCES campaign_jobs.waitlist_users (campaign_id, id),
    CHECK ((status = 'claimed') = (claim_token IS NOT NULL)),
    CHECK ((claim_token IS NULL) = (claimed_until IS NULL)),
    CHECK ((status = 'accepted') = (accepted_at IS NOT NULL)),
    CHECK ((status = 'accepted') = (ses_message_id IS NOT NULL)),
    CHECK ((status = 'parked') = (parked_event IS NOT NULL)),
    CHECK (status NOT IN ('skipped', 'parked', 'failed') OR reason IS NOT NULL),
    CHECK ((delivery_status IS NULL) = (delivery_status_at IS NULL)),
    CHECK ((type = 'reward_earned') = (user_reward_id IS NOT NULL))
);
CREATE UNIQUE INDEX email_messages_once
    ON campaign_jobs.email_messages (once_key) WHERE once_key IS NOT NULL AND status IN ('claimed', 'accepted');
-- Two position updates of one user must not both pass the cooldown, so only one is on its way at any moment.
CREATE UNIQUE INDEX email_messages_one_position_update_claimed
    ON campaign_jobs.email_messages (user_id) WHERE type = 'position_update' AND status = 'claimed';
CREATE INDEX email_messages_last_position_update
    ON campaign_jobs.email_messages (user_id, accepted_at) WHERE type = 'position_update' AND status = 'accepted';
CREATE INDEX email_messages_accepted ON campaign_jobs.email_messages (accepted_at) WHERE accepted_at IS NOT NULL;
CREATE INDEX email_messages_parked ON campaign_jobs.email_messages (campaign_id) WHERE status = 'parked';
CREATE INDEX email_messages_by_user ON campaign_jobs.email_messages (user_id);

-- An address that must not be written to again, whatever the campaign.
CREATE TABLE campaign_jobs.email_suppressions (
    address text PRIMARY KEY CHECK (address = lower(address)),
    reason text NOT NULL CHECK (reason IN ('bounce', 'complaint', 'manual')),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE campaign_jobs.email_unsubscribes (
    user_id uuid PRIMARY KEY REFERENCES campaign_jobs.waitlist_users,
    created_at timestamptz NOT NULL DEFAULT now()
);
