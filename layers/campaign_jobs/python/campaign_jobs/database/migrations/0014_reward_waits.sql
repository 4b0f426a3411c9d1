-- When the mail of a user reward was asked for last: one that is never settled must not keep others away for ever.
ALTER TABLE campaign_jobs.user_rewards ADD COLUMN mail_asked_at timestamptz;
CREATE INDEX user_rewards_delivering
    ON campaign_jobs.user_rewards (coalesce(claimed_until, mail_asked_at, earned_at)) WHERE status = 'delivering';
