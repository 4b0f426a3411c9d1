-- How far a scheduled job has got; the next run goes on from here.
CREATE TABLE campaign_jobs.job_watermarks (
    job_type text PRIMARY KEY CHECK (job_type IN ('analytics', 'fraud')),
    watermark timestamptz NOT NULL,
    -- What the results depend on besides the data (rules, policies, lists); a change makes the next run a full one.
    rules_version text,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- One row for each campaign and hour of the campaign's time zone in which something happened.
CREATE TABLE campaign_jobs.campaign_metrics (
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    bucket timestamptz NOT NULL,
    new_signups integer NOT NULL DEFAULT 0 CHECK (new_signups >= 0),
    email_verifications integer NOT NULL DEFAULT 0 CHECK (email_verifications >= 0),
    referrals integer NOT NULL DEFAULT 0 CHECK (referrals >= 0),
    emails_sent integer NOT NULL DEFAULT 0 CHECK (emails_sent >= 0),
    rewards_delivered integer NOT NULL DEFAULT 0 CHECK (rewards_delivered >= 0),
    PRIMARY KEY (campaign_id, bucket)
);
CREATE INDEX campaign_metrics_by_bucket ON campaign_jobs.campaign_metrics (bucket);
