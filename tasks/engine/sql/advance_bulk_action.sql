-- Carries out a portion of one bulk action, of the tenant that has waited longest for its turn and there of the action
-- that has, for the leader of the shard. A portion has so many runs at most, and of those that are retried so many bytes
-- of arguments, but for a first one that is heavier. Each portion is one transaction: it acts and moves on, or does
-- neither. Waits for nobody: a run whose row is locked, or whose lease its own step holds, is put behind the others.
-- Returns the changes of state.
--   done    what was cancelled or told to stop; what was retried
--   failed  what could not be: it had ended, or had not; it had been retried; it is gone; its family is off, its tenant
--           suspended, its task or its tenant drained, a quota used up
CREATE OR REPLACE FUNCTION advance_bulk_action(p_shard text, p_epoch bigint, p_limit int, p_bytes bigint, p_step interval)
RETURNS TABLE (tenant_id uuid, run_id uuid, queue text, state text, sequence int, attempt int, at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();
  v_action record;
  v_held uuid[];
  v_told uuid[];
  v_later uuid[];
  v_over boolean;
  v_quotas jsonb;
  v_room double precision;
  v_stopping int := 0;
  v_done int;
BEGIN
  PERFORM check_leader(p_shard, p_epoch);
  SELECT a.tenant_id, a.id, a.kind, a.actor_kind, a.actor,
         coalesce(a.pending[a.position + 1 : a.position + p_limit], '{}') AS runs INTO v_action
  FROM bulk_actions a WHERE a.finished_at IS NULL
  ORDER BY (SELECT max(o.advanced_at) FROM bulk_actions o WHERE o.tenant_id = a.tenant_id AND o.finished_at IS NULL),
           a.advanced_at, a.id
  LIMIT 1 FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF v_action.kind = 'RETRY' THEN
    v_action.runs := ARRAY(
      SELECT w.id FROM (
        SELECT u.id, u.place, sum(pg_column_size(r.args)) OVER (ORDER BY u.place) AS bytes
        FROM unnest(v_action.runs) WITH ORDINALITY AS u(id, place)
        LEFT JOIN runs r ON r.tenant_id = v_action.tenant_id AND r.id = u.id
      ) w
      WHERE w.place = 1 OR coalesce(w.bytes, 0) <= p_bytes ORDER BY w.place);
    v_quotas := quotas_of(v_action.tenant_id);
    IF v_quotas ?| ARRAY['runs', 'backlog'] THEN
      SELECT a.room INTO v_room FROM admit_runs(v_action.tenant_id, cardinality(v_action.runs), v_quotas, false) a;
      IF v_room IS NULL THEN -- Somebody holds the quota: another turn.
        UPDATE bulk_actions a SET advanced_at = clock_timestamp()
        WHERE a.tenant_id = v_action.tenant_id AND a.id = v_action.id;
        RETURN;
      END IF;
    END IF;
  END IF;
  v_held := ARRAY(SELECT r.id FROM runs r WHERE r.tenant_id = v_action.tenant_id AND r.id = ANY (v_action.runs)
                  FOR UPDATE SKIP LOCKED);
  v_over := v_action.runs = '{}';
  IF v_action.kind = 'CANCEL' THEN
    v_told := ARRAY(SELECT l.run_id FROM run_leases l WHERE l.tenant_id = v_action.tenant_id AND l.run_id = ANY (v_held)
                    FOR UPDATE SKIP LOCKED);
    v_held := ARRAY(SELECT h.run FROM unnest(v_held) AS h(run) WHERE h.run = ANY (v_told) OR NOT EXISTS (
                      SELECT FROM run_leases l WHERE l.tenant_id = v_action.tenant_id AND l.run_id = h.run));
    UPDATE run_leases l SET cancel = true WHERE l.tenant_id = v_action.tenant_id AND l.run_id = ANY (v_told);
    UPDATE runs r SET cancel_requested_at = coalesce(r.cancel_requested_at, v_now)
    WHERE r.tenant_id = v_action.tenant_id AND r.id = ANY (v_held) AND r.state = 'RUNNING';
    GET DIAGNOSTICS v_stopping = ROW_COUNT;
    RETURN QUERY
    WITH cancelled AS (
      UPDATE runs r SET state = 'CANCELLED', sequence = r.sequence + 1, finished_at = v_now,
                        cancel_requested_at = coalesce(r.cancel_requested_at, v_now)
      WHERE r.tenant_id = v_action.tenant_id AND r.id = ANY (v_held)
        AND r.state IN ('SCHEDULED', 'QUEUED', 'RELEASED', 'WAITING')
      RETURNING r.tenant_id, r.id, r.queue, r.state, r.sequence, r.attempt
    ), noted AS (
      INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt, note)
      SELECT c.tenant_id, c.id, c.sequence, c.state, c.attempt, 'cancelled before it started' FROM cancelled c
    )
    SELECT c.*, v_now FROM cancelled c;
  ELSE
    RETURN QUERY
    WITH origin AS MATERIALIZED (
      SELECT r.*, new_id() AS retry FROM runs r
      WHERE r.tenant_id = v_action.tenant_id AND r.id = ANY (v_held) AND r.retried_by IS NULL
        AND r.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED', 'TIMED_OUT')
        AND EXISTS (SELECT FROM tenants t WHERE t.id = r.tenant_id AND t.suspended_at IS NULL)
        AND EXISTS (SELECT FROM tenant_families f
                    WHERE f.tenant_id = r.tenant_id AND f.family = split_part(r.task, '.', 1))
        AND NOT EXISTS (SELECT FROM pauses p
                        WHERE p.tenant_id = r.tenant_id AND p.draining AND p.task IN ('', r.task))
      LIMIT CASE WHEN v_room < 'Infinity' THEN greatest(v_room, 0)::bigint END
    ), retried AS (
      UPDATE runs r SET retried_by = o.retry FROM origin o WHERE r.tenant_id = o.tenant_id AND r.id = o.id
    ), accepted AS (
      INSERT INTO runs (tenant_id, id, task, queue, args, priority, rank, state, max_attempts, concurrency_key,
                        actor_kind, actor, origin_id, effects_of, created_at, available_at, retry_until)
      SELECT o.tenant_id, o.retry, o.task, o.queue, o.args, o.priority, v_now - o.priority * p_step, 'QUEUED',
             o.max_attempts, o.concurrency_key, v_action.actor_kind, v_action.actor, coalesce(o.origin_id, o.id),
             coalesce(o.effects_of, o.id), v_now, v_now, v_now + (o.retry_until - o.created_at)
      FROM origin o
      RETURNING tenant_id, id, queue, state, sequence, attempt
    ), noted AS (
      INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt)
      SELECT n.tenant_id, n.id, n.sequence, n.state, n.attempt FROM accepted n
    )
    SELECT n.*, v_now FROM accepted n;
  END IF;
  GET DIAGNOSTICS v_done = ROW_COUNT;
  IF v_action.kind = 'RETRY' AND v_done > 0 THEN
    PERFORM count_usage(v_action.tenant_id, 'runs', v_done);
  END IF;
  v_done := v_done + v_stopping;
  v_later := ARRAY(SELECT r.id FROM runs r WHERE r.tenant_id = v_action.tenant_id AND r.id = ANY (v_action.runs)
                   AND r.id <> ALL (v_held));
  UPDATE bulk_actions a SET
    done = a.done + v_done,
    failed = a.failed + cardinality(v_action.runs) - cardinality(v_later) - v_done,
    position = a.position + cardinality(v_action.runs),
    pending = CASE WHEN v_later = '{}' THEN a.pending ELSE a.pending || v_later END,
    advanced_at = clock_timestamp()
  WHERE a.tenant_id = v_action.tenant_id AND a.id = v_action.id;
  UPDATE bulk_actions a SET pending = '{}', finished_at = clock_timestamp()
  WHERE a.tenant_id = v_action.tenant_id AND a.id = v_action.id
    AND (a.done + a.failed >= a.total OR v_over);
END $$;
REVOKE ALL ON FUNCTION advance_bulk_action(text, bigint, int, bigint, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION advance_bulk_action(text, bigint, int, bigint, interval) TO tenantry_system;
