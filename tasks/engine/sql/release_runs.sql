-- A release's fence: later than every one before, also than those of commits that a crash of the server has lost.
CREATE OR REPLACE FUNCTION next_fence(p_fence bigint) RETURNS bigint LANGUAGE sql AS $$
  SELECT greatest(p_fence + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
$$;
REVOKE ALL ON FUNCTION next_fence(bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION next_fence(bigint) TO tenantry_system;

-- QUEUED → RELEASED with a new fence, for the leader of the shard. Runs that have moved on since are left out.
-- Its commit need not be flushed: where a crash of the server forgets it, the run is released again, under a later fence.
--   p_limit_tenants, p_limits, p_keys, p_arrivals  how far the rates are used by then, one of each for a rate
CREATE OR REPLACE FUNCTION release_runs(
  p_shard text, p_epoch bigint, p_tenants uuid[], p_runs uuid[],
  p_limit_tenants uuid[] DEFAULT '{}', p_limits uuid[] DEFAULT '{}', p_keys text[] DEFAULT '{}',
  p_arrivals double precision[] DEFAULT '{}'
)
RETURNS TABLE (tenant_id uuid, run_id uuid, task text, queue text, concurrency_key text, fence bigint, sequence int,
               attempt int, at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  PERFORM check_leader(p_shard, p_epoch);
  INSERT INTO limit_states AS s (tenant_id, limit_id, key, arrival)
  SELECT * FROM unnest(p_limit_tenants, p_limits, p_keys, p_arrivals)
  ON CONFLICT (tenant_id, limit_id, key) DO UPDATE SET arrival = excluded.arrival;
  RETURN QUERY
  WITH chosen AS (
    SELECT r.tenant_id, r.id FROM unnest(p_tenants, p_runs) AS u(tenant, run)
    JOIN runs r ON r.tenant_id = u.tenant AND r.id = u.run
    WHERE r.state || '' = 'QUEUED' -- Said plainly, PostgreSQL may look for the run among all that waits.
    FOR UPDATE OF r SKIP LOCKED
  ), released AS (
    UPDATE runs r SET state = 'RELEASED', fence = next_fence(r.fence), sequence = r.sequence + 1,
                      released_at = clock_timestamp()
    FROM chosen c WHERE r.tenant_id = c.tenant_id AND r.id = c.id
    RETURNING r.tenant_id, r.id, r.task, r.queue, r.concurrency_key, r.fence, r.sequence, r.attempt, r.released_at
  ), noted AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt)
    SELECT n.tenant_id, n.id, n.sequence, 'RELEASED', n.attempt FROM released n
  )
  SELECT * FROM released;
END $$;
REVOKE ALL ON FUNCTION release_runs(text, bigint, uuid[], uuid[], uuid[], uuid[], text[], double precision[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION release_runs(text, bigint, uuid[], uuid[], uuid[], uuid[], text[], double precision[])
  TO tenantry_system;

-- Those of these that are SCHEDULED or RELEASED become QUEUED. The caller has locked their rows.
CREATE OR REPLACE FUNCTION queue_runs(p_tenants uuid[], p_runs uuid[], p_note text)
RETURNS TABLE (tenant_id uuid, run_id uuid, queue text, state text, sequence int, attempt int, at timestamptz)
LANGUAGE sql AS $$
  WITH queued AS (
    UPDATE runs r SET state = 'QUEUED', sequence = r.sequence + 1,
                      fence = r.fence + CASE r.state WHEN 'RELEASED' THEN 1 ELSE 0 END
    FROM unnest(p_tenants, p_runs) AS u(tenant, run)
    WHERE r.tenant_id = u.tenant AND r.id = u.run AND r.state IN ('SCHEDULED', 'RELEASED')
    RETURNING r.tenant_id, r.id, r.queue, r.state, r.sequence, r.attempt
  ), noted AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt, note)
    SELECT n.tenant_id, n.id, n.sequence, n.state, n.attempt, p_note FROM queued n
  )
  SELECT q.*, clock_timestamp() FROM queued q
$$;
REVOKE ALL ON FUNCTION queue_runs(uuid[], uuid[], text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION queue_runs(uuid[], uuid[], text) TO tenantry_system;

-- What is due becomes QUEUED, what has been due for longest first.
--   p_limit    how many at most; where tenants are named, of each
--   p_tenants  whose; NULL for anybody's
CREATE OR REPLACE FUNCTION queue_due_runs(p_shard text, p_epoch bigint, p_limit int, p_tenants uuid[] DEFAULT NULL)
RETURNS TABLE (tenant_id uuid, run_id uuid, queue text, state text, sequence int, attempt int, at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();
  v_tenants uuid[];
  v_runs uuid[];
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  PERFORM check_leader(p_shard, p_epoch);
  IF p_tenants IS NULL THEN
    SELECT array_agg(d.tenant_id), array_agg(d.id) INTO v_tenants, v_runs FROM (
      SELECT r.tenant_id, r.id FROM runs r WHERE r.state = 'SCHEDULED' AND r.available_at <= v_now
      ORDER BY r.available_at LIMIT p_limit FOR UPDATE SKIP LOCKED) d;
  ELSE
    SELECT array_agg(u.tenant), array_agg(d.id) INTO v_tenants, v_runs FROM unnest(p_tenants) AS u(tenant)
    CROSS JOIN LATERAL (
      SELECT r.id FROM runs r WHERE r.tenant_id = u.tenant AND r.state = 'SCHEDULED' AND r.available_at <= v_now
      ORDER BY r.available_at LIMIT p_limit FOR UPDATE SKIP LOCKED) d;
  END IF;
  RETURN QUERY SELECT * FROM queue_runs(v_tenants, v_runs, NULL);
END $$;
REVOKE ALL ON FUNCTION queue_due_runs(text, bigint, int, uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION queue_due_runs(text, bigint, int, uuid[]) TO tenantry_system;

-- What was released that long ago and never claimed becomes QUEUED again, at most p_limit.
CREATE OR REPLACE FUNCTION requeue_unclaimed_runs(p_shard text, p_epoch bigint, p_unclaimed interval, p_limit int)
RETURNS TABLE (tenant_id uuid, run_id uuid, queue text, state text, sequence int, attempt int, at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_tenants uuid[];
  v_runs uuid[];
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  PERFORM check_leader(p_shard, p_epoch);
  SELECT array_agg(l.tenant_id), array_agg(l.id) INTO v_tenants, v_runs FROM (
    SELECT r.tenant_id, r.id FROM runs r
    WHERE r.state = 'RELEASED' AND r.released_at <= clock_timestamp() - p_unclaimed
    ORDER BY r.released_at LIMIT p_limit FOR UPDATE SKIP LOCKED) l;
  RETURN QUERY SELECT * FROM queue_runs(v_tenants, v_runs, 'not claimed in time');
END $$;
REVOKE ALL ON FUNCTION requeue_unclaimed_runs(text, bigint, interval, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION requeue_unclaimed_runs(text, bigint, interval, int) TO tenantry_system;

-- The broker refused these: RELEASED → QUEUED under their fence, so that they are released again.
CREATE OR REPLACE FUNCTION unrelease_runs(p_shard text, p_epoch bigint, p_tenants uuid[], p_runs uuid[], p_fences bigint[])
RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  v_tenants uuid[];
  v_runs uuid[];
BEGIN
  PERFORM check_leader(p_shard, p_epoch);
  SELECT array_agg(n.tenant_id), array_agg(n.id) INTO v_tenants, v_runs FROM (
    SELECT r.tenant_id, r.id FROM unnest(p_tenants, p_runs, p_fences) AS u(tenant, run, fence)
    JOIN runs r ON r.tenant_id = u.tenant AND r.id = u.run AND r.state = 'RELEASED' AND r.fence = u.fence
    FOR UPDATE OF r) n;
  RETURN (SELECT count(*) FROM queue_runs(v_tenants, v_runs, 'the broker did not take it'));
END $$;
REVOKE ALL ON FUNCTION unrelease_runs(text, bigint, uuid[], uuid[], bigint[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION unrelease_runs(text, bigint, uuid[], uuid[], bigint[]) TO tenantry_system;
