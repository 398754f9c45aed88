-- Accepts runs, all or none, in one trip and one statement for all. Returns each run once: those with an id that was
-- given are new, one with another id was accepted earlier under the same idempotency key.
--   TN001 the idempotency key was used with other arguments (detail: the run's id)
--   TN002 the tenant is suspended       TN003 the family is not enabled (detail: its name)
--   TN004 more would wait than a limit allows (detail: its name, amount and how many wait, as a JSON list)
--   TN005 the tenant or the task is drained (detail: the task, nothing for the tenant)
--   TN006 a quota of the tenant has no room for them (detail: its name, its limit and what is used, as a JSON list)
--   TN007 there is no such tenant any more
CREATE OR REPLACE FUNCTION trigger_runs(
  p_tenant uuid, p_actor_kind text, p_actor text, p_runs jsonb, p_idempotency interval, p_step interval
) RETURNS SETOF runs LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_now timestamptz := clock_timestamp();
  v_suspended timestamptz;
  v_families text[];
  v_drained text[];
  v_quotas jsonb;
  v_quota text;
  v_room double precision;
  v_most double precision;
  v_used double precision;
  v_number int;
  v_limited boolean;
  v_in record;
  v_key idempotency_keys;
  v_run uuid;
  v_new uuid[] := '{}'; -- By place; NULL where an earlier run stands for the one given.
  v_earlier uuid[] := '{}';
BEGIN
  -- As enter_tenant does, but that the look at the tenant is the one below: this is the hottest of all.
  PERFORM set_config('app.tenant_id', p_tenant::text, true), pg_advisory_xact_lock_shared(tenant_lock(p_tenant));
  SELECT t.suspended_at, ARRAY(SELECT f.family FROM tenant_families f WHERE f.tenant_id = p_tenant),
         ARRAY(SELECT p.task FROM pauses p WHERE p.tenant_id = p_tenant AND p.draining), l.quotas || t.quotas
    INTO v_suspended, v_families, v_drained, v_quotas
  FROM tenants t JOIN plans l ON l.name = t.plan WHERE t.id = p_tenant;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no such tenant' USING ERRCODE = 'TN007';
  ELSIF v_suspended IS NOT NULL THEN
    RAISE EXCEPTION 'tenant suspended' USING ERRCODE = 'TN002';
  END IF;
  IF v_quotas ?| ARRAY['runs', 'backlog'] THEN
    SELECT a.quota, a.room, a.amount, a.taken INTO v_quota, v_room, v_most, v_used
    FROM admit_runs(p_tenant, jsonb_array_length(p_runs), v_quotas, true) a;
  END IF;
  -- Who triggers under a backlog limit follows who did before: neither may overlook the other's runs.
  PERFORM 1 FROM limits WHERE tenant_id = p_tenant AND kind = 'BACKLOG' ORDER BY id FOR NO KEY UPDATE;
  v_limited := FOUND;
  FOR v_in IN
    SELECT * FROM jsonb_to_recordset(p_runs)
      AS r(id uuid, task text, idempotency_key text, digest text, internal boolean)
  LOOP
    IF v_in.internal IS NOT TRUE AND split_part(v_in.task, '.', 1) <> ALL (v_families) THEN
      RAISE EXCEPTION 'family not enabled' USING ERRCODE = 'TN003', DETAIL = split_part(v_in.task, '.', 1);
    END IF;
    v_run := v_in.id;
    IF v_in.idempotency_key IS NOT NULL THEN
      INSERT INTO idempotency_keys AS k (tenant_id, key, run_id, digest, expires_at)
      VALUES (p_tenant, v_in.idempotency_key, v_in.id, v_in.digest, v_now + p_idempotency)
      ON CONFLICT (tenant_id, key) DO UPDATE
        SET run_id = excluded.run_id, digest = excluded.digest, expires_at = excluded.expires_at
        WHERE k.expires_at <= v_now
      RETURNING k.* INTO v_key;
      IF NOT FOUND THEN
        SELECT * INTO v_key FROM idempotency_keys WHERE tenant_id = p_tenant AND key = v_in.idempotency_key;
        IF v_key.digest <> v_in.digest THEN
          RAISE EXCEPTION 'idempotency conflict' USING ERRCODE = 'TN001', DETAIL = v_key.run_id::text;
        END IF;
        IF v_key.run_id = ANY (v_new) OR EXISTS (SELECT FROM runs WHERE tenant_id = p_tenant AND id = v_key.run_id) THEN
          v_run := NULL;
          v_earlier := v_earlier || v_key.run_id;
        ELSE  -- The first run has been pruned since: the key stands for this one now.
          UPDATE idempotency_keys SET run_id = v_in.id, expires_at = v_now + p_idempotency
          WHERE tenant_id = p_tenant AND key = v_in.idempotency_key;
        END IF;
      END IF;
    END IF;
    IF v_run IS NOT NULL AND v_drained && ARRAY['', v_in.task] THEN
      RAISE EXCEPTION 'drained' USING ERRCODE = 'TN005',
        DETAIL = CASE WHEN '' = ANY (v_drained) THEN '' ELSE v_in.task END;
    END IF;
    v_new := v_new || v_run;
  END LOOP;
  v_number := cardinality(array_remove(v_new, NULL));
  IF v_number > 0 AND v_number > v_room THEN
    RAISE EXCEPTION 'quota used up' USING ERRCODE = 'TN006',
      DETAIL = jsonb_build_array(v_quota, v_most, v_used)::text;
  END IF;
  IF v_number > 0 THEN
    PERFORM count_usage(p_tenant, 'runs', v_number);
  END IF;
  IF v_earlier <> '{}' THEN
    RETURN QUERY SELECT * FROM runs WHERE tenant_id = p_tenant AND id = ANY (v_earlier);
  END IF;
  RETURN QUERY
  WITH made AS (
    INSERT INTO runs (tenant_id, id, task, queue, args, priority, rank, state, max_attempts, concurrency_key,
                      idempotency_key, actor_kind, actor, origin_id, effects_of, created_at, available_at, retry_until)
    SELECT p_tenant, r.id, r.task, r.queue, r.args, r.priority, due - r.priority * p_step,
           CASE WHEN due > v_now THEN 'SCHEDULED' ELSE 'QUEUED' END, r.max_attempts, r.concurrency_key,
           r.idempotency_key, p_actor_kind, p_actor, r.origin_id, r.effects_of, v_now, due,
           v_now + make_interval(secs => r.max_elapsed)
    FROM ROWS FROM (jsonb_to_recordset(p_runs) AS (
      id uuid, task text, queue text, args jsonb, priority smallint, max_attempts int, max_elapsed double precision,
      delay double precision, available_at timestamptz, concurrency_key text, idempotency_key text,
      origin_id uuid, effects_of uuid)) WITH ORDINALITY AS r (
      id, task, queue, args, priority, max_attempts, max_elapsed, delay, available_at, concurrency_key,
      idempotency_key, origin_id, effects_of, place),
      -- A moment that has passed means now: it is no head start.
      greatest(v_now, r.available_at, v_now + make_interval(secs => r.delay)) AS due
    WHERE v_new[r.place] = r.id
    RETURNING *
  ), told AS (
    INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt)
    SELECT tenant_id, id, sequence, state, 0 FROM made
  )
  SELECT * FROM made;
  IF v_limited THEN
    PERFORM check_backlog(p_tenant, v_new);
  END IF;
END $$;
REVOKE ALL ON FUNCTION trigger_runs(uuid, text, text, jsonb, interval, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION trigger_runs(uuid, text, text, jsonb, interval, interval) TO tenantry_app;

-- Refuses new runs where more would wait than a limit of the tenant allows. Counts no further than it must.
--   TN004 more would wait than a limit allows
CREATE OR REPLACE FUNCTION check_backlog(p_tenant uuid, p_made uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v_limit record;
  v_new int;
  v_waiting bigint;
BEGIN
  FOR v_limit IN SELECT * FROM limits WHERE tenant_id = p_tenant AND kind = 'BACKLOG' LOOP
    SELECT count(*) INTO v_new FROM runs r
    WHERE r.tenant_id = p_tenant AND r.id = ANY (p_made)
      AND concerns(v_limit.queue, v_limit.task, v_limit.concurrency_key, r.queue, r.task, r.concurrency_key);
    CONTINUE WHEN v_new = 0;
    v_waiting := backlog(p_tenant, v_limit.queue, v_limit.task, v_limit.concurrency_key,
                         floor(v_limit.amount)::bigint + v_new + 1);
    IF v_waiting > v_limit.amount THEN
      RAISE EXCEPTION 'backlog full' USING ERRCODE = 'TN004',
        DETAIL = jsonb_build_array(v_limit.name, v_limit.amount, v_waiting - v_new)::text;
    END IF;
  END LOOP;
END $$;
REVOKE ALL ON FUNCTION check_backlog(uuid, uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION check_backlog(uuid, uuid[]) TO tenantry_app;
