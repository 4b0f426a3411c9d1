-- What lets rows be deleted by their age, and events be known as too old that such rows would have recognized.

-- When the event says that it was asked for. NULL where it says nothing, and in rows of releases before this one; those
-- are kept, because nothing would tell that their event is too old.
ALTER TABLE campaign_jobs.email_messages ADD COLUMN asked_at timestamptz;

-- How far deleting has got in the tables whose rows recognize what comes again.
CREATE TABLE campaign_jobs.retention (
    table_name text PRIMARY KEY,
    -- No row was deleted that is about this moment or a later one. What is about an earlier one and has no row is too old.
    kept_since timestamptz NOT NULL DEFAULT '-infinity',
    -- The row that was looked at last; the next look goes on after it, and NULL begins anew.
    after_created_at timestamptz,
    after_event_id text
);
INSERT INTO campaign_jobs.retention (table_name) VALUES ('email_messages'), ('email_events');

-- What is deleted is found in the order of its age. A mail that has used up its once-key, and a parked one, never is.
-- By created_at, because an index on a column that changes would make each update of a mail write all its indexes.
CREATE INDEX email_messages_passing ON campaign_jobs.email_messages (created_at, event_id)
    WHERE asked_at IS NOT NULL AND status <> 'parked' AND (once_key IS NULL OR status <> 'accepted');
CREATE INDEX email_events_by_age ON campaign_jobs.email_events (recorded_at);
CREATE INDEX outbox_by_age ON campaign_jobs.outbox (coalesce(published_at, created_at))
    WHERE published_at IS NOT NULL OR refused IS NOT NULL;
CREATE INDEX webhook_attempts_by_age ON campaign_jobs.webhook_attempts (attempted_at);
CREATE INDEX fraud_cases_by_age ON campaign_jobs.fraud_cases (updated_at)
    WHERE status IN ('dismissed', 'retracted') AND blocked_from IS NULL;
