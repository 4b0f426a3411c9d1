-- Positions live in a table of their own, written by the position job alone: in the users' table a run and the
-- services' writes would block each other. No index on position and room in the pages, so that updates stay HOT.
CREATE TABLE campaign_jobs.user_positions (
    user_id uuid PRIMARY KEY REFERENCES campaign_jobs.waitlist_users,
    campaign_id uuid NOT NULL REFERENCES campaign_jobs.campaigns,
    score bigint NOT NULL,
    verified_referrals integer NOT NULL CHECK (verified_referrals >= 0),
    position integer NOT NULL CHECK (position >= 1),
    -- The position that the last enqueued position_update told; at first the original position.
    last_enqueued_position integer NOT NULL CHECK (last_enqueued_position >= 1),
    changed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);
CREATE INDEX user_positions_by_campaign ON campaign_jobs.user_positions (campaign_id);

-- One row for each thing that asks for a recalculation; a run deletes those it has counted in.
CREATE TABLE campaign_jobs.position_requests (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    campaign_id uuid NOT NULL,
    -- Of a request that came as an event; NULL for one that a trigger wrote in the causing transaction.
    event_id text UNIQUE,
    requested_at timestamptz NOT NULL DEFAULT now(),
    points_per_referral integer CHECK (points_per_referral > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (points_per_referral IS NULL OR event_id IS NOT NULL)
);
CREATE INDEX position_requests_by_campaign ON campaign_jobs.position_requests (campaign_id);
