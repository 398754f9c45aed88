-- An error with the word that there was no time left for another attempt.
CREATE OR REPLACE FUNCTION too_late(p_error jsonb, p_created timestamptz, p_until timestamptz) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
  SELECT p_error || jsonb_build_object('message', concat_ws(' ', nullif(p_error ->> 'message', ''), format(
    '(not tried again: no attempt may begin later than %s s after the run was accepted)',
    round(extract(epoch FROM p_until - p_created), 3)::float8)))
$$;
REVOKE ALL ON FUNCTION too_late(jsonb, timestamptz, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION too_late(jsonb, timestamptz, timestamptz) TO tenantry_app;

-- Ends an attempt: RUNNING → the given state, the event, the lease gone; the last statement of its transaction.
-- Settling again with the same fence and state returns what was settled, as replayed: an answer may have been lost on
-- the way. A transaction with work of its own must not commit it on a replay: the work was committed, or was another's.
-- A retry that would begin after the run's retry_until ends it instead.
--   p_delay      for SCHEDULED: how long from now     p_give_back  the attempt does not count
--   TN010 fenced: the attempt was replaced, or its lease has expired
CREATE OR REPLACE FUNCTION settle_run(
  p_tenant uuid, p_run uuid, p_fence bigint, p_state text, p_result jsonb, p_error jsonb, p_event text,
  p_delay double precision, p_give_back boolean, p_note text, p_step interval
) RETURNS TABLE (state text, sequence int, attempt int, settled_at timestamptz, replayed boolean)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();
  v_before runs;
  v_run runs;
  v_state text := p_state;
BEGIN
  PERFORM set_config('app.tenant_id', p_tenant::text, true);
  SELECT * INTO v_before FROM runs r WHERE r.tenant_id = p_tenant AND r.id = p_run FOR UPDATE;
  IF NOT FOUND OR v_before.fence <> p_fence THEN
    RAISE EXCEPTION 'fenced: replaced' USING ERRCODE = 'TN010';
  END IF;
  IF v_before.state <> 'RUNNING' THEN
    IF v_before.state = p_state OR v_before.state = 'CANCELLED' THEN
      RETURN QUERY SELECT v_before.state, v_before.sequence, v_before.attempt, v_now, true;
      RETURN;
    END IF;
    RAISE EXCEPTION 'fenced: not running' USING ERRCODE = 'TN010';
  END IF;
  IF v_before.cancel_requested_at IS NOT NULL AND p_state <> 'SUCCEEDED' THEN
    v_state := 'CANCELLED';
  ELSIF p_state = 'SCHEDULED' AND NOT p_give_back AND v_now + make_interval(secs => p_delay) > v_before.retry_until THEN
    v_state := CASE p_error ->> 'type' WHEN 'TimeLimitExceeded' THEN 'TIMED_OUT' ELSE 'FAILED' END;
    p_error := too_late(p_error, v_before.created_at, v_before.retry_until);
    p_note := p_error ->> 'message';
  END IF;
  UPDATE runs r SET
    state = v_state,
    sequence = r.sequence + 1,
    attempt = r.attempt - CASE WHEN p_give_back THEN 1 ELSE 0 END,
    result = p_result,
    error = p_error,
    wait_event = p_event,
    worker_seconds = r.worker_seconds
      + extract(epoch FROM v_now - (SELECT e.at FROM run_events e WHERE e.tenant_id = p_tenant AND e.run_id = p_run
                                                              AND e.sequence = r.sequence)),
    available_at = CASE WHEN v_state = 'SCHEDULED' THEN v_now + make_interval(secs => p_delay) ELSE r.available_at END,
    rank = CASE WHEN v_state = 'SCHEDULED' THEN v_now + make_interval(secs => p_delay) - r.priority * p_step
                ELSE r.rank END,
    finished_at = CASE WHEN v_state IN ('SUCCEEDED', 'FAILED', 'TIMED_OUT', 'CANCELLED') THEN v_now END,
    fingerprint = CASE WHEN v_state IN ('FAILED', 'TIMED_OUT')
                       THEN dead_letter_fingerprint(p_tenant, r.task, p_error) END
  WHERE r.tenant_id = p_tenant AND r.id = p_run
  RETURNING r.* INTO v_run;
  PERFORM record_event(p_tenant, p_run, v_run.sequence, v_run.state, v_run.attempt, p_note);
  PERFORM count_usage(p_tenant, 'workerSeconds', v_run.worker_seconds - v_before.worker_seconds);
  DELETE FROM run_leases l
  WHERE l.tenant_id = p_tenant AND l.run_id = p_run AND l.fence = p_fence AND l.expires_at > clock_timestamp();
  IF NOT FOUND THEN
    RAISE EXCEPTION 'fenced: lease expired' USING ERRCODE = 'TN010';
  END IF;
  RETURN QUERY SELECT v_run.state, v_run.sequence, v_run.attempt, v_now, false;
END $$;
REVOKE ALL ON FUNCTION settle_run(uuid, uuid, bigint, text, jsonb, jsonb, text, double precision, boolean, text, interval)
  FROM PUBLIC;
GRANT EXECUTE ON FUNCTION settle_run(uuid, uuid, bigint, text, jsonb, jsonb, text, double precision, boolean, text, interval)
  TO tenantry_app;
