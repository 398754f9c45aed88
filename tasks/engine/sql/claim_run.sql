-- RELEASED → RUNNING for the holder of the release's fence, with a lease. No row: the message is stale.
-- Its commit need not be flushed: whatever the attempt commits for good flushes the claim before it.
-- Asked again with the same token, as after a lost answer, it gives the same: another message's claim has another.
-- `origin` is the run whose effects it shares.
-- Where the tenant was suspended, the tenant or task paused, or a cap lowered after the release, the run goes back into
-- its queue (verdict 'held').
CREATE OR REPLACE FUNCTION claim_run(
  p_tenant uuid, p_run uuid, p_fence bigint, p_task text, p_worker text, p_lease interval, p_hard interval,
  p_token uuid
) RETURNS TABLE (verdict text, sequence int, attempt int, max_attempts int, args jsonb, origin uuid,
                 claimed_at timestamptz)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();
  v_held text;
  v_run runs;
BEGIN
  PERFORM set_config('app.tenant_id', p_tenant::text, true), set_config('synchronous_commit', 'off', true);
  v_held := held_back(p_tenant, p_run, p_task);
  UPDATE runs r SET
    state = CASE WHEN v_held IS NOT NULL THEN 'QUEUED' ELSE 'RUNNING' END,
    attempt = CASE WHEN v_held IS NOT NULL THEN r.attempt ELSE r.attempt + 1 END,
    started_at = CASE WHEN v_held IS NOT NULL THEN r.started_at ELSE coalesce(r.started_at, v_now) END,
    sequence = r.sequence + 1
  WHERE r.tenant_id = p_tenant AND r.id = p_run AND r.state = 'RELEASED' AND r.fence = p_fence AND r.task = p_task
  RETURNING r.* INTO v_run;
  IF NOT FOUND THEN
    RETURN QUERY SELECT 'claimed', r.sequence, r.attempt, r.max_attempts, r.args, coalesce(r.effects_of, r.id), v_now
    FROM run_leases l JOIN runs r ON r.tenant_id = l.tenant_id AND r.id = l.run_id
    WHERE l.tenant_id = p_tenant AND l.run_id = p_run AND l.fence = p_fence AND l.token = p_token
      AND l.expires_at > v_now;
    RETURN;
  END IF;
  PERFORM record_event(p_tenant, p_run, v_run.sequence, v_run.state, v_run.attempt, v_held);
  IF v_held IS NOT NULL THEN
    RETURN QUERY SELECT 'held', v_run.sequence, v_run.attempt, v_run.max_attempts, NULL::jsonb, NULL::uuid, v_now;
    RETURN;
  END IF;
  INSERT INTO run_leases (tenant_id, run_id, fence, queue, worker, token, expires_at, deadline_at)
  VALUES (p_tenant, p_run, p_fence, v_run.queue, p_worker, p_token, v_now + p_lease, v_now + p_hard);
  RETURN QUERY SELECT 'claimed', v_run.sequence, v_run.attempt, v_run.max_attempts, v_run.args,
                      coalesce(v_run.effects_of, v_run.id), v_now;
END $$;
REVOKE ALL ON FUNCTION claim_run(uuid, uuid, bigint, text, text, interval, interval, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_run(uuid, uuid, bigint, text, text, interval, interval, uuid) TO tenantry_app;

-- Why a run must not start now, in words; NULL where nothing speaks against it. Claims under one cap follow each other.
CREATE OR REPLACE FUNCTION held_back(p_tenant uuid, p_run uuid, p_task text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_run runs;
  v_limit record;
  v_suspended timestamptz;
  v_paused text;
  v_capped boolean;
  v_running int;
BEGIN
  SELECT t.suspended_at,
         (SELECT min(p.task) FROM pauses p WHERE p.tenant_id = p_tenant AND p.task IN ('', p_task) AND NOT p.draining),
         EXISTS (SELECT FROM limits l WHERE l.tenant_id = p_tenant AND l.kind = 'CONCURRENCY')
    INTO v_suspended, v_paused, v_capped
  FROM tenants t WHERE t.id = p_tenant;
  IF v_suspended IS NOT NULL THEN
    RETURN 'the tenant is suspended';
  ELSIF v_paused IS NOT NULL THEN
    RETURN CASE v_paused WHEN '' THEN 'the tenant is paused' ELSE 'the task is paused' END;
  ELSIF NOT v_capped THEN
    RETURN NULL;
  END IF;
  SELECT * INTO v_run FROM runs WHERE tenant_id = p_tenant AND id = p_run;
  FOR v_limit IN
    SELECT * FROM limits l
    WHERE l.tenant_id = p_tenant AND l.kind = 'CONCURRENCY'
      AND concerns(l.queue, l.task, l.concurrency_key, v_run.queue, v_run.task, v_run.concurrency_key)
    ORDER BY l.id FOR NO KEY UPDATE
  LOOP
    SELECT count(*) INTO v_running FROM run_leases e JOIN runs o ON o.tenant_id = e.tenant_id AND o.id = e.run_id
    WHERE e.tenant_id = p_tenant AND e.run_id <> p_run
      AND counts_beside(v_limit.queue, v_limit.task, v_limit.concurrency_key, o.queue, o.task, o.concurrency_key,
                        v_run.concurrency_key);
    IF v_running >= v_limit.amount THEN
      RETURN 'the limit ' || v_limit.name || ' is reached';
    END IF;
  END LOOP;
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION held_back(uuid, uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION held_back(uuid, uuid, text) TO tenantry_app;
