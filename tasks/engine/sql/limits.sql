-- Whether a limit that names queue, task and key, or leaves them out, holds for what has these. '*' stands for any key.
CREATE OR REPLACE FUNCTION concerns(
  p_limit_queue text, p_limit_task text, p_limit_key text, p_queue text, p_task text, p_key text
) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT (p_limit_queue IS NULL OR p_limit_queue = p_queue) AND (p_limit_task IS NULL OR p_limit_task = p_task)
    AND (p_limit_key IS NULL OR p_limit_key = p_key OR (p_limit_key = '*' AND p_key IS NOT NULL))
$$;
REVOKE ALL ON FUNCTION concerns(text, text, text, text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION concerns(text, text, text, text, text, text) TO tenantry_app;
