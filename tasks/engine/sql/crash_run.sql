-- An attempt that died: fence + 1, then SCHEDULED (at once after the first crash, later after more), CANCELLED if that
-- was asked for, or FAILED once it has crashed p_max times or has no time left for another attempt. No row: the attempt
-- had ended otherwise.
CREATE OR REPLACE FUNCTION crash_run(
  p_tenant uuid, p_run uuid, p_fence bigint, p_cause text, p_max int, p_step interval
) RETURNS TABLE (tenant_id uuid, run_id uuid, queue text, state text, sequence int, attempt int, at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();
  v_due timestamptz;
  v_ends boolean;
  v_error jsonb := jsonb_build_object('type', 'WorkerLost', 'message', p_cause, 'retryable', true);
  v_before runs;
  v_run runs;
BEGIN
  SELECT * INTO v_before FROM runs r
  WHERE r.tenant_id = p_tenant AND r.id = p_run AND r.state = 'RUNNING' AND r.fence = p_fence
  FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  v_due := v_now + make_interval(secs => CASE v_before.crashes WHEN 0 THEN 0 ELSE 2 ^ v_before.crashes END);
  v_ends := v_before.crashes + 1 >= p_max;
  IF NOT v_ends AND v_due > v_before.retry_until THEN
    v_ends := true;
    v_error := too_late(v_error, v_before.created_at, v_before.retry_until);
  END IF;
  UPDATE runs r SET
    fence = r.fence + 1,
    sequence = r.sequence + 1,
    crashes = r.crashes + 1,
    state = CASE WHEN r.cancel_requested_at IS NOT NULL THEN 'CANCELLED'
                 WHEN v_ends THEN 'FAILED' ELSE 'SCHEDULED' END,
    error = v_error,
    finished_at = CASE WHEN r.cancel_requested_at IS NOT NULL OR v_ends THEN v_now END,
    fingerprint = CASE WHEN r.cancel_requested_at IS NULL AND v_ends
                       THEN dead_letter_fingerprint(p_tenant, r.task, v_error) END,
    available_at = v_due,
    rank = v_due - r.priority * p_step
  WHERE r.tenant_id = p_tenant AND r.id = p_run
  RETURNING r.* INTO v_run;
  PERFORM record_event(p_tenant, p_run, v_run.sequence, v_run.state, v_run.attempt, p_cause);
  DELETE FROM run_leases l WHERE l.tenant_id = p_tenant AND l.run_id = p_run AND l.fence = p_fence;
  RETURN QUERY SELECT p_tenant, p_run, v_run.queue, v_run.state, v_run.sequence, v_run.attempt, v_now;
END $$;
REVOKE ALL ON FUNCTION crash_run(uuid, uuid, bigint, text, int, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION crash_run(uuid, uuid, bigint, text, int, interval) TO tenantry_app;

-- The same for a worker that saw its own child die.
CREATE OR REPLACE FUNCTION report_crash(
  p_tenant uuid, p_run uuid, p_fence bigint, p_cause text, p_max int, p_step interval
) RETURNS TABLE (tenant_id uuid, run_id uuid, queue text, state text, sequence int, attempt int, at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  PERFORM set_config('app.tenant_id', p_tenant::text, true);
  PERFORM end_backend(l.run_id, l.fence) FROM run_leases l
  WHERE l.tenant_id = p_tenant AND l.run_id = p_run AND l.fence = p_fence;
  RETURN QUERY SELECT * FROM crash_run(p_tenant, p_run, p_fence, p_cause, p_max, p_step);
END $$;
REVOKE ALL ON FUNCTION report_crash(uuid, uuid, bigint, text, int, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION report_crash(uuid, uuid, bigint, text, int, interval) TO tenantry_app;

-- Ends the database session of an attempt, so that its row locks do not hold up its successor.
CREATE OR REPLACE FUNCTION end_backend(p_run uuid, p_fence bigint) RETURNS int
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT count(pg_terminate_backend(pid))::int FROM pg_stat_activity
  WHERE application_name = p_run || '/' || p_fence AND usename = 'tenantry_app' AND pid <> pg_backend_pid()
    AND datname = current_database()
$$;
REVOKE ALL ON FUNCTION end_backend(uuid, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION end_backend(uuid, bigint) TO tenantry_app;

-- Rescues every attempt whose lease has expired, at most p_limit, for the leader of the shard.
CREATE OR REPLACE FUNCTION rescue_runs(p_shard text, p_epoch bigint, p_max int, p_step interval, p_limit int)
RETURNS TABLE (tenant_id uuid, run_id uuid, queue text, state text, sequence int, attempt int, at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
  v_lease run_leases;
BEGIN
  PERFORM check_leader(p_shard, p_epoch);
  FOR v_lease IN
    SELECT * FROM run_leases l WHERE l.expires_at <= clock_timestamp() ORDER BY l.expires_at LIMIT p_limit
  LOOP
    PERFORM end_backend(v_lease.run_id, v_lease.fence);
    PERFORM 1 FROM runs r WHERE r.tenant_id = v_lease.tenant_id AND r.id = v_lease.run_id FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
      CONTINUE;
    END IF;
    PERFORM 1 FROM run_leases l WHERE l.tenant_id = v_lease.tenant_id AND l.run_id = v_lease.run_id
      AND l.fence = v_lease.fence AND l.expires_at <= clock_timestamp() FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
      CONTINUE;
    END IF;
    RETURN QUERY SELECT * FROM crash_run(v_lease.tenant_id, v_lease.run_id, v_lease.fence,
                                         'lost: worker ' || v_lease.worker || ' stopped renewing its lease',
                                         p_max, p_step);
  END LOOP;
END $$;
REVOKE ALL ON FUNCTION rescue_runs(text, bigint, int, interval, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rescue_runs(text, bigint, int, interval, int) TO tenantry_system;
