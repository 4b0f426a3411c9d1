-- Positions live in a table of their own, written by the position job alone: in the users' table a run and the
-- services' writes would block each other. No index on position and half of each page left free, so that a run that
-- moves everybody still makes HOT updates.
CREATE TABLE campaign_jobs.user_positions (
    user_id uuid PRIMARY KEY,
    campaign_id uuid NOT NULL,
    score bigint NOT NULL,
    verified_referrals integer NOT NULL CHECK (verified_referrals >= 0),
    position integer NOT NULL CHECK (position >= 1),
    -- The position that the last enqueued position_update told; at first the original position.
    last_enqueued_position integer NOT NULL CHECK (last_enqueued_position >= 1),
    changed_at timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (campaign_id, user_id) REFERENCES campaign_jobs.waitlist_users (campaign_id, id)
) WITH (fillfactor = 50);
CREATE INDEX user_positions_by_campaign ON campaign_jobs.user_positions (campaign_id);

-- One row for each thing that asks for a recalculation; a run deletes those it has counted in.
CREATE TABLE campaign_jobs.position_requests (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    campaign_id uuid NOT NULL,
    -- Of a request that came as an event; NULL for one that a trigger wrote in the causing transaction.
    event_id text UNIQUE,
    -- When the event's producer asked; the latest (requested_at, event_id) decides the points.
    requested_at timestamptz NOT NULL DEFAULT now(),
    points_per_referral integer CHECK (points_per_referral > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (points_per_referral IS NULL OR event_id IS NOT NULL)
);
CREATE INDEX position_requests_by_campaign ON campaign_jobs.position_requests (campaign_id);

-- One row for each campaign. Who holds its lock is the campaign's one runner, and every run writes it, so that a run
-- whose snapshot is older than another run's commit cannot commit.
CREATE TABLE campaign_jobs.position_runs (
    campaign_id uuid PRIMARY KEY REFERENCES campaign_jobs.campaigns ON DELETE CASCADE,
    -- How many runs have committed; those that ranked set ranked_at.
    runs bigint NOT NULL DEFAULT 0,
    ranked_at timestamptz,
    -- When relay last enqueued a request for rows that waited with nobody running.
    woken_at timestamptz
) WITH (fillfactor = 50);
