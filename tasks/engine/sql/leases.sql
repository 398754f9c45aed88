-- Renews the leases of a worker's attempts. Each is 'renewed', 'busy' (its row is locked by its own commit: not lost) or
-- 'gone', as one that has expired is for good: others may have acted on that. Never waits.
--   stop  why a renewed one is to stop: 'cancelled', or its tenant is 'suspended'; NULL where it may go on
CREATE OR REPLACE FUNCTION renew_leases(p_worker text, p_runs uuid[], p_fences bigint[], p_lease interval)
RETURNS TABLE (run_id uuid, fence bigint, verdict text, stop text, seconds_left double precision)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  RETURN QUERY
  WITH mine AS (
    SELECT u.run, u.fence, l.tenant_id, l.run_id AS found
    FROM unnest(p_runs, p_fences) AS u(run, fence)
    LEFT JOIN run_leases l ON l.run_id = u.run AND l.fence = u.fence AND l.worker = p_worker
      AND l.expires_at > clock_timestamp()
  ), locked AS (
    SELECT l.tenant_id, l.run_id FROM run_leases l JOIN mine m ON m.tenant_id = l.tenant_id AND m.run = l.run_id
    FOR UPDATE OF l SKIP LOCKED
  ), renewed AS (
    UPDATE run_leases l SET expires_at = clock_timestamp() + p_lease
    FROM locked k WHERE l.tenant_id = k.tenant_id AND l.run_id = k.run_id AND l.expires_at > clock_timestamp()
    RETURNING l.run_id, l.fence, l.deadline_at,
              CASE WHEN l.cancel THEN 'cancelled'
                   WHEN EXISTS (SELECT FROM tenants t WHERE t.id = l.tenant_id AND t.suspended_at IS NOT NULL)
                   THEN 'suspended' END AS stop
  )
  SELECT m.run, m.fence,
         CASE WHEN r.run_id IS NOT NULL THEN 'renewed' WHEN m.found IS NOT NULL THEN 'busy' ELSE 'gone' END,
         r.stop,
         coalesce(extract(epoch FROM r.deadline_at - clock_timestamp())::double precision, 0)
  FROM mine m LEFT JOIN renewed r ON r.run_id = m.run AND r.fence = m.fence;
END $$;
REVOKE ALL ON FUNCTION renew_leases(text, uuid[], bigint[], interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION renew_leases(text, uuid[], bigint[], interval) TO tenantry_app;

-- A later deadline for an attempt that knows it needs longer.
--   TN010 fenced
CREATE OR REPLACE FUNCTION extend_run(p_tenant uuid, p_run uuid, p_fence bigint, p_by interval) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('app.tenant_id', p_tenant::text, true);
  UPDATE run_leases SET deadline_at = deadline_at + p_by
  WHERE tenant_id = p_tenant AND run_id = p_run AND fence = p_fence AND expires_at > clock_timestamp();
  IF NOT FOUND THEN
    RAISE EXCEPTION 'fenced' USING ERRCODE = 'TN010';
  END IF;
END $$;
REVOKE ALL ON FUNCTION extend_run(uuid, uuid, bigint, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION extend_run(uuid, uuid, bigint, interval) TO tenantry_app;

-- The last statement of a step's transaction, and of an effect's two: the lease must be held.
--   TN010 fenced
CREATE OR REPLACE FUNCTION hold_lease(p_run uuid, p_fence bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM run_leases
  WHERE tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid AND run_id = p_run AND fence = p_fence
    AND expires_at > clock_timestamp()
  FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'fenced' USING ERRCODE = 'TN010';
  END IF;
END $$;
REVOKE ALL ON FUNCTION hold_lease(uuid, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION hold_lease(uuid, bigint) TO tenantry_app;

-- A worker process reports itself; what it last claimed shows its health, not its process id.
--   p_tasks  the tasks that its code knows; NULL where it does not tell
CREATE OR REPLACE FUNCTION worker_seen(
  p_worker text, p_queues text[], p_slots int, p_running int, p_memory bigint, p_claimed boolean, p_started boolean,
  p_tasks text[] DEFAULT NULL
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  INSERT INTO workers AS w (name, queues, slots, running, memory_bytes, tasks)
  VALUES (p_worker, p_queues, p_slots, p_running, p_memory, p_tasks)
  ON CONFLICT (name) DO UPDATE SET
    queues = excluded.queues, slots = excluded.slots, running = excluded.running, memory_bytes = excluded.memory_bytes,
    tasks = excluded.tasks,
    started_at = CASE WHEN p_started THEN clock_timestamp() ELSE w.started_at END,
    last_seen = clock_timestamp(),
    last_claim = CASE WHEN p_claimed THEN clock_timestamp() ELSE w.last_claim END;
END $$;
REVOKE ALL ON FUNCTION worker_seen(text, text[], int, int, bigint, boolean, boolean, text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION worker_seen(text, text[], int, int, bigint, boolean, boolean, text[]) TO tenantry_app;

-- A worker process has stopped.
CREATE OR REPLACE FUNCTION worker_gone(p_worker text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  DELETE FROM workers WHERE name = p_worker
$$;
REVOKE ALL ON FUNCTION worker_gone(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION worker_gone(text) TO tenantry_app;
