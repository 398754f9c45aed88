-- Whether a limit that names queue, task and key, or leaves them out, holds for what has these. '*' stands for any key.
CREATE OR REPLACE FUNCTION concerns(
  p_limit_queue text, p_limit_task text, p_limit_key text, p_queue text, p_task text, p_key text
) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT (p_limit_queue IS NULL OR p_limit_queue = p_queue) AND (p_limit_task IS NULL OR p_limit_task = p_task)
    AND (p_limit_key IS NULL OR p_limit_key = p_key OR (p_limit_key = '*' AND p_key IS NOT NULL))
$$;
REVOKE ALL ON FUNCTION concerns(text, text, text, text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION concerns(text, text, text, text, text, text) TO tenantry_app;

-- Whether the limit counts what has these together with a run of the key p_beside, which it holds for.
CREATE OR REPLACE FUNCTION counts_beside(
  p_limit_queue text, p_limit_task text, p_limit_key text, p_queue text, p_task text, p_key text, p_beside text
) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT concerns(p_limit_queue, p_limit_task, p_limit_key, p_queue, p_task, p_key)
    AND (p_limit_key IS DISTINCT FROM '*' OR p_key = p_beside)
$$;
REVOKE ALL ON FUNCTION counts_beside(text, text, text, text, text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION counts_beside(text, text, text, text, text, text, text) TO tenantry_app;

-- How many runs wait that a limit of this queue, task and key holds for, counted no further than p_most. Planned for what
-- is named: whether few or nearly all runs of a tenant are meant decides how they are found.
CREATE OR REPLACE FUNCTION backlog(p_tenant uuid, p_queue text, p_task text, p_key text, p_most bigint) RETURNS bigint
LANGUAGE plpgsql SET plan_cache_mode = auto AS $$
BEGIN
  RETURN (
    SELECT count(*) FROM (
      SELECT FROM runs r
      WHERE r.tenant_id = p_tenant AND r.state IN ('SCHEDULED', 'QUEUED', 'RELEASED')
        AND concerns(p_queue, p_task, p_key, r.queue, r.task, r.concurrency_key)
      LIMIT p_most
    ) w);
END $$;
REVOKE ALL ON FUNCTION backlog(uuid, text, text, text, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION backlog(uuid, text, text, text, bigint) TO tenantry_app;
