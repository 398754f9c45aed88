-- What makes dead letters one group: a tenant's task, the type of the error, and its message but for what is quoted, for
-- addresses, and for every word that holds a digit: numbers, times, ids, hexadecimal.
CREATE OR REPLACE FUNCTION dead_letter_fingerprint(p_tenant uuid, p_task text, p_error jsonb) RETURNS uuid
LANGUAGE sql IMMUTABLE AS $$
  SELECT encode(substring(sha256(convert_to(
    p_tenant::text || E'\n' || p_task || E'\n' || coalesce(p_error ->> 'type', '') || E'\n'
    || regexp_replace(regexp_replace(regexp_replace(left(coalesce(p_error ->> 'message', ''), 2000),
         '"[^"]*"|`[^`]*`|(?<!\w)''[^'']*''(?!\w)', '?', 'g'),
         '[[:alnum:]_.+-]*@[[:alnum:].-]+|[[:alnum:]_-]*[0-9](?:[[:alnum:]_-]|[.,:](?=[0-9]))*', '#', 'g'),
         '\s+', ' ', 'g'),
    'UTF8')) FROM 1 FOR 16), 'hex')::uuid
$$;
REVOKE ALL ON FUNCTION dead_letter_fingerprint(uuid, text, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dead_letter_fingerprint(uuid, text, jsonb) TO tenantry_app;
