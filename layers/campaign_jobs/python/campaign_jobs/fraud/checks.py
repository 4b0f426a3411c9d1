"""The checks: one set-based statement each, over all users or over the key groups that an incremental run looks at.

Each writes what it finds to pg_temp.fraud_found. Removed users do not count, on either side. Blocked ones do: were a
block to retract its own evidence, it would undo itself.

A statement names its scope as `{scope}`. A full run leaves it out. An incremental run joins pg_temp.fraud_touched where
a check looks at each user alone, or the check's keys in pg_temp.fraud_scope, where it looks at groups; those keys are
always complete groups, so that what is found about them is what a full run would find.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class CheckStatement:
    purpose: str
    find: str
    """Inserts into pg_temp.fraud_found; `{scope}` is where an incremental run narrows it down."""
    scope: str
    """What stands for `{scope}` in an incremental run."""

    def statement(self, *, full: bool) -> str:
        return f"-- {self.purpose}\n" + self.find.replace("{scope}", "" if full else self.scope)


# OFFSET 0 keeps the subquery apart, so that its casts meet the check's own keys alone.
def _keys(check: str, columns: str, *, only: str = "true") -> str:
    return (
        f"JOIN (SELECT campaign_id, {columns} FROM pg_temp.fraud_scope"  # noqa: S608 - constants of this module
        f" WHERE \"check\" = '{check}' AND {only} OFFSET 0) AS scope"
    )


_TOUCHED = "JOIN pg_temp.fraud_touched AS touched ON touched.user_id = u.id"

SELF_REFERRAL: Final = CheckStatement(
    purpose="self_referral: referrer and referred share a mailbox, a device or an address; both are subjects",
    find="""
    WITH pairs AS (
        SELECT
            r.campaign_id, r.referrer_id, r.referred_id, p.self_referral_email_weight,
            p.self_referral_device_weight, p.self_referral_ip_weight,
            (referrer.email_normalized = referred.email_normalized)::integer AS same_email,
            coalesce(referrer.device_fingerprint = referred.device_fingerprint, false)::integer AS same_device,
            coalesce(referrer.ip = referred.ip AND NOT EXISTS (
                SELECT FROM unnest(p.ip_allowlist) AS allowed WHERE referrer.ip <<= allowed
            ), false)::integer AS same_ip
        FROM campaign_jobs.referrals AS r
        {scope}
        JOIN campaign_jobs.waitlist_users AS referrer ON referrer.id = r.referrer_id AND referrer.status <> 'removed'
        JOIN campaign_jobs.waitlist_users AS referred ON referred.id = r.referred_id AND referred.status <> 'removed'
        JOIN pg_temp.fraud_policies AS p ON p.campaign_id = r.campaign_id AND p.self_referral
    )
    INSERT INTO pg_temp.fraud_found
    SELECT
        side.user_id, 'self_referral', referrer_id || '>' || referred_id, campaign_id,
        least(100, same_email * self_referral_email_weight + same_device * self_referral_device_weight
            + same_ip * self_referral_ip_weight),
        -- A mailbox says more than a device, a device more than an address: each kind is a band of its own.
        same_email * 4 + same_device * 2 + same_ip,
        side.other_user_id,
        jsonb_build_object('referrer_id', referrer_id, 'referred_id', referred_id, 'same', to_jsonb(array_remove(ARRAY[
            CASE same_email WHEN 1 THEN 'email' END, CASE same_device WHEN 1 THEN 'device' END,
            CASE same_ip WHEN 1 THEN 'ip' END], NULL)))
    FROM pairs
    CROSS JOIN LATERAL (
        VALUES (referrer_id, referred_id), (referred_id, referrer_id)
    ) AS side (user_id, other_user_id)
    WHERE same_email + same_device + same_ip > 0
    """,
    scope=_keys(
        "self_referral",
        "split_part(evidence_key, '>', 1)::uuid AS referrer_id, split_part(evidence_key, '>', 2)::uuid AS referred_id",
    )
    + " USING (campaign_id, referrer_id, referred_id)",
)

VELOCITY: Final = CheckStatement(
    purpose="velocity: more referrals by one referrer within any hour than a person makes",
    find="""
    WITH counted AS (
        SELECT r.campaign_id, r.referrer_id, count(*) OVER (
            PARTITION BY r.referrer_id ORDER BY r.created_at
            RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW
        ) AS within_an_hour
        FROM campaign_jobs.referrals AS r
        {scope}
        JOIN campaign_jobs.waitlist_users AS referred ON referred.id = r.referred_id AND referred.status <> 'removed'
    ), peaks AS (
        SELECT campaign_id, referrer_id, max(within_an_hour)::integer AS referrals
        FROM counted GROUP BY campaign_id, referrer_id
    )
    INSERT INTO pg_temp.fraud_found
    SELECT
        referrer.id, 'velocity', referrer.id::text, referrer.campaign_id, p.velocity_weight, peaks.referrals, NULL,
        jsonb_build_object('referrals_within_an_hour', peaks.referrals)
    FROM peaks
    JOIN campaign_jobs.waitlist_users AS referrer ON referrer.id = peaks.referrer_id AND referrer.status <> 'removed'
    JOIN pg_temp.fraud_policies AS p ON p.campaign_id = peaks.campaign_id AND p.velocity
    WHERE peaks.referrals > p.velocity_threshold
    """,
    scope=_keys("velocity", "evidence_key::uuid AS referrer_id") + " USING (campaign_id, referrer_id)",
)

FAKE_EMAIL_DOMAIN: Final = CheckStatement(
    purpose="fake_email: the address is at a domain of throw-away mailboxes",
    find="""
    INSERT INTO pg_temp.fraud_found
    SELECT
        u.id, 'fake_email', 'domain:' || disposable.domain, u.campaign_id, p.fake_email_disposable_weight, 1, NULL,
        jsonb_build_object('disposable_domain', disposable.domain)
    FROM campaign_jobs.waitlist_users AS u
    {scope}
    JOIN pg_temp.fraud_disposable_domains AS disposable ON disposable.domain = split_part(u.email_normalized, '@', 2)
    JOIN pg_temp.fraud_policies AS p ON p.campaign_id = u.campaign_id AND p.fake_email
    WHERE u.status <> 'removed'
    """,
    scope=_TOUCHED,
)

FAKE_EMAIL_ALIAS: Final = CheckStatement(
    purpose="fake_email: the address leads to the mailbox of an earlier account of the campaign",
    find="""
    WITH mailboxes AS (
        SELECT u.campaign_id, u.email_normalized
        FROM campaign_jobs.waitlist_users AS u
        {scope}
        WHERE u.status <> 'removed'
        GROUP BY u.campaign_id, u.email_normalized
        HAVING count(*) > 1
    ), members AS (
        SELECT
            u.id, u.campaign_id, u.email_normalized,
            first_value(u.id) OVER (mailbox ORDER BY u.created_at, u.id) AS first_id,
            (count(*) OVER mailbox)::integer AS accounts
        FROM mailboxes
        JOIN campaign_jobs.waitlist_users AS u USING (campaign_id, email_normalized)
        WHERE u.status <> 'removed'
        WINDOW mailbox AS (PARTITION BY u.campaign_id, u.email_normalized)
    )
    INSERT INTO pg_temp.fraud_found
    SELECT
        members.id, 'fake_email', 'address:' || email_normalized, campaign_id, p.fake_email_alias_weight, accounts,
        first_id,
        jsonb_build_object('accounts_of_the_mailbox', accounts, 'first_user_id', first_id)
    FROM members
    JOIN pg_temp.fraud_policies AS p USING (campaign_id)
    WHERE p.fake_email AND members.id <> first_id
    """,
    scope=_keys(
        "fake_email",
        "substr(evidence_key, length('address:') + 1) AS email_normalized",
        only="starts_with(evidence_key, 'address:')",
    )
    + " USING (campaign_id, email_normalized)",
)

BOT: Final = CheckStatement(
    purpose="bot: the user agent is a program's",
    find="""
    INSERT INTO pg_temp.fraud_found
    SELECT
        -- A user agent may be longer than an index entry.
        u.id, 'bot', md5(u.user_agent), u.campaign_id, p.bot_weight, 1, NULL,
        jsonb_build_object('user_agent', left(u.user_agent, 200))
    FROM campaign_jobs.waitlist_users AS u
    {scope}
    JOIN pg_temp.fraud_crawlers AS crawler ON crawler.user_agent = u.user_agent
    JOIN pg_temp.fraud_policies AS p ON p.campaign_id = u.campaign_id AND p.bot
    WHERE u.status <> 'removed'
    """,
    scope=_TOUCHED,
)

DUPLICATE_IP: Final = CheckStatement(
    purpose="duplicate_ip: many users of a campaign signed up from one address",
    find="""
    WITH addresses AS (
        SELECT u.campaign_id, u.ip, count(*)::integer AS users
        FROM campaign_jobs.waitlist_users AS u
        {scope}
        WHERE u.status <> 'removed' AND u.ip IS NOT NULL
        GROUP BY u.campaign_id, u.ip
        HAVING count(*) > 1
    )
    INSERT INTO pg_temp.fraud_found
    SELECT
        u.id, 'duplicate_ip', abbrev(u.ip), u.campaign_id, p.duplicate_ip_weight, addresses.users, NULL,
        jsonb_build_object('users_on_the_address', addresses.users)
    FROM addresses
    JOIN pg_temp.fraud_policies AS p ON p.campaign_id = addresses.campaign_id AND p.duplicate_ip
    JOIN campaign_jobs.waitlist_users AS u ON u.campaign_id = addresses.campaign_id AND u.ip = addresses.ip
    WHERE u.status <> 'removed' AND addresses.users > p.duplicate_ip_threshold
        AND NOT EXISTS (SELECT FROM unnest(p.ip_allowlist) AS allowed WHERE addresses.ip <<= allowed)
    """,
    scope=_keys("duplicate_ip", "evidence_key::inet AS ip") + " USING (campaign_id, ip)",
)

DUPLICATE_DEVICE: Final = CheckStatement(
    purpose="duplicate_device: many users of a campaign signed up from one device",
    find="""
    WITH devices AS (
        SELECT u.campaign_id, u.device_fingerprint, count(*)::integer AS users
        FROM campaign_jobs.waitlist_users AS u
        {scope}
        WHERE u.status <> 'removed' AND u.device_fingerprint IS NOT NULL
        GROUP BY u.campaign_id, u.device_fingerprint
        HAVING count(*) > 1
    )
    INSERT INTO pg_temp.fraud_found
    SELECT
        u.id, 'duplicate_device', u.device_fingerprint, u.campaign_id, p.duplicate_device_weight, devices.users, NULL,
        jsonb_build_object('users_on_the_device', devices.users)
    FROM devices
    JOIN pg_temp.fraud_policies AS p ON p.campaign_id = devices.campaign_id AND p.duplicate_device
    JOIN campaign_jobs.waitlist_users AS u
        ON u.campaign_id = devices.campaign_id AND u.device_fingerprint = devices.device_fingerprint
    WHERE u.status <> 'removed' AND devices.users > p.duplicate_device_threshold
    """,
    scope=_keys("duplicate_device", "evidence_key AS device_fingerprint")
    + " USING (campaign_id, device_fingerprint)",
)

STATEMENTS: Final = (
    SELF_REFERRAL,
    VELOCITY,
    FAKE_EMAIL_DOMAIN,
    FAKE_EMAIL_ALIAS,
    BOT,
    DUPLICATE_IP,
    DUPLICATE_DEVICE,
)
