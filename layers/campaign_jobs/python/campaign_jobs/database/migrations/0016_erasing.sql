-- What is left of an address when the person is erased.

-- In the place of the user's own: at .invalid it reaches nobody (RFC 2606), and each user's is another one.
CREATE FUNCTION campaign_jobs.address_of_erased(user_id uuid) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT user_id || '@erased.invalid'
$$;

-- In the place of a suppressed one: it cannot be read from this, and is found again when somebody signs up with it.
CREATE FUNCTION campaign_jobs.erased_address(address text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT 'sha256:' || encode(sha256(convert_to(lower(address), 'UTF8')), 'hex')
$$;
