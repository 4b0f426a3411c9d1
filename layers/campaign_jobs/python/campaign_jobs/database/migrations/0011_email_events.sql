-- What SES has reported about our mails, each report once. SES may publish one again under another id of EventBridge's,
-- so what tells reports apart is what they say. No addresses: those that must not be written to are in email_suppressions.
CREATE TABLE campaign_jobs.email_events (
    tag text NOT NULL REFERENCES campaign_jobs.email_messages (tag) ON DELETE CASCADE,
    -- Two mails may carry one tag: after a crash or a lost answer, a mail is sent again.
    ses_message_id text NOT NULL,
    delivery_status text NOT NULL CHECK (delivery_status IN ('sent', 'delayed', 'soft_bounced', 'delivered',
                                                             'rendering_failed', 'rejected', 'bounced', 'complained')),
    occurred_at timestamptz NOT NULL,
    detail text,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tag, ses_message_id, delivery_status, occurred_at)
);
