-- Whatever a position depends on leaves a request in the transaction that changes it, so that no recalculation is lost
-- and none comes before its cause. Statement triggers: a bulk insert of any size leaves one request for each campaign.
-- The functions run with their owner's rights, because services have no business in position_requests itself.

-- Users who left the ranking, whose positions a run removes.
CREATE INDEX waitlist_users_unranked ON campaign_jobs.waitlist_users (campaign_id) WHERE status IN ('removed', 'blocked');

CREATE FUNCTION campaign_jobs.add_position_run() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    INSERT INTO campaign_jobs.position_runs (campaign_id) VALUES (NEW.id);
    RETURN NULL;
END
$$;
CREATE TRIGGER campaigns_position_run AFTER INSERT ON campaign_jobs.campaigns
    FOR EACH ROW EXECUTE FUNCTION campaign_jobs.add_position_run();

-- Points that a service set; a run that sets them names the request that it obeys. The status and the minimum decide who
-- is told of a position, so that a campaign that goes on tells what happened while it was paused.
CREATE FUNCTION campaign_jobs.request_positions_of_campaign() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    INSERT INTO campaign_jobs.position_requests (campaign_id) VALUES (NEW.id);
    RETURN NULL;
END
$$;
CREATE TRIGGER campaigns_position_request
    AFTER UPDATE OF points_per_referral, position_email_min_delta, status ON campaign_jobs.campaigns
    FOR EACH ROW WHEN (
        (OLD.points_per_referral <> NEW.points_per_referral
            AND (OLD.points_requested_at, OLD.points_request_id)
                IS NOT DISTINCT FROM (NEW.points_requested_at, NEW.points_request_id))
        OR (NEW.status = 'active' AND (OLD.status <> NEW.status
            OR OLD.position_email_min_delta <> NEW.position_email_min_delta))
    ) EXECUTE FUNCTION campaign_jobs.request_positions_of_campaign();

-- A ranked user's position depends on these columns and no others.
CREATE FUNCTION campaign_jobs.request_positions_of_users() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO campaign_jobs.position_requests (campaign_id)
        WITH before AS (
            SELECT campaign_id, id, original_position, created_at FROM old_rows WHERE status NOT IN ('removed', 'blocked')
        ), after AS (
            SELECT campaign_id, id, original_position, created_at FROM new_rows WHERE status NOT IN ('removed', 'blocked')
        ), changed AS (
            (TABLE before EXCEPT TABLE after) UNION ALL (TABLE after EXCEPT TABLE before)
        )
        SELECT DISTINCT campaign_id FROM changed;
    ELSE
        INSERT INTO campaign_jobs.position_requests (campaign_id)
        SELECT DISTINCT campaign_id FROM changed_rows WHERE status NOT IN ('removed', 'blocked');
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER waitlist_users_position_insert AFTER INSERT ON campaign_jobs.waitlist_users
    REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_jobs.request_positions_of_users();
CREATE TRIGGER waitlist_users_position_update AFTER UPDATE ON campaign_jobs.waitlist_users
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_jobs.request_positions_of_users();
CREATE TRIGGER waitlist_users_position_delete AFTER DELETE ON campaign_jobs.waitlist_users
    REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_jobs.request_positions_of_users();

-- Only a referral that is verified or converted counts, for its referrer, unless either side is held.
CREATE FUNCTION campaign_jobs.request_positions_of_referrals() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO campaign_jobs.position_requests (campaign_id)
        WITH before AS (
            SELECT campaign_id, referrer_id, referred_id FROM old_rows WHERE status IN ('verified', 'converted')
        ), after AS (
            SELECT campaign_id, referrer_id, referred_id FROM new_rows WHERE status IN ('verified', 'converted')
        ), changed AS (
            (TABLE before EXCEPT TABLE after) UNION ALL (TABLE after EXCEPT TABLE before)
        )
        SELECT DISTINCT campaign_id FROM changed;
    ELSE
        INSERT INTO campaign_jobs.position_requests (campaign_id)
        SELECT DISTINCT campaign_id FROM changed_rows WHERE status IN ('verified', 'converted');
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER referrals_position_insert AFTER INSERT ON campaign_jobs.referrals
    REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_jobs.request_positions_of_referrals();
CREATE TRIGGER referrals_position_update AFTER UPDATE ON campaign_jobs.referrals
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_jobs.request_positions_of_referrals();
CREATE TRIGGER referrals_position_delete AFTER DELETE ON campaign_jobs.referrals
    REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_jobs.request_positions_of_referrals();

-- The rows of fraud_cases that make a user held, as the view held_users says.
CREATE FUNCTION campaign_jobs.request_positions_of_cases() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO campaign_jobs.position_requests (campaign_id)
        WITH before AS (
            SELECT campaign_id, user_id FROM old_rows
            WHERE status = 'confirmed' OR (status = 'open' AND holding) OR blocked_from IS NOT NULL
        ), after AS (
            SELECT campaign_id, user_id FROM new_rows
            WHERE status = 'confirmed' OR (status = 'open' AND holding) OR blocked_from IS NOT NULL
        ), changed AS (
            (TABLE before EXCEPT TABLE after) UNION ALL (TABLE after EXCEPT TABLE before)
        )
        SELECT DISTINCT campaign_id FROM changed;
    ELSE
        INSERT INTO campaign_jobs.position_requests (campaign_id)
        SELECT DISTINCT campaign_id FROM changed_rows
        WHERE status = 'confirmed' OR (status = 'open' AND holding) OR blocked_from IS NOT NULL;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER fraud_cases_position_insert AFTER INSERT ON campaign_jobs.fraud_cases
    REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_jobs.request_positions_of_cases();
CREATE TRIGGER fraud_cases_position_update AFTER UPDATE ON campaign_jobs.fraud_cases
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_jobs.request_positions_of_cases();
CREATE TRIGGER fraud_cases_position_delete AFTER DELETE ON campaign_jobs.fraud_cases
    REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_jobs.request_positions_of_cases();
