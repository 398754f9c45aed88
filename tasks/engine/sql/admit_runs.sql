-- How many of p_new runs a tenant's quotas have room for; what is accepted must be counted (count_usage) in the same
-- transaction. Exact, however many ask at once, and without a row that all of them write: who is far from a limit asks
-- beside others, under a shared lock; who is near it asks alone, and then nobody else's run is on its way. Far is what no
-- transactions on their way can bridge: each connection has one at most, with 1,000 runs at most among those that asked
-- beside others.
--   p_wait   wait for the lock; else room is null where it is not free
--   p_quotas what quotas_of says
--   quota, amount, taken  the quota with the least room, its limit, and what is used of it
CREATE OR REPLACE FUNCTION admit_runs(
  p_tenant uuid, p_new int, p_quotas jsonb, p_wait boolean,
  OUT room double precision, OUT quota text, OUT amount double precision, OUT taken double precision
) LANGUAGE plpgsql AS $$
DECLARE
  c_most CONSTANT int := 1000;
  v_lock bigint := quota_lock(p_tenant, 'runs');
  v_reserve bigint := current_setting('max_connections')::bigint * c_most;
  v_own double precision;
BEGIN
  -- Figures that were folded are a little old: they only spare those that are near for certain the first way.
  IF p_new <= c_most AND coalesce((p_quotas ->> 'backlog')::double precision > p_new + v_reserve, true)
    AND coalesce((p_quotas ->> 'runs')::double precision > p_new + v_reserve + coalesce((
      SELECT u.amount FROM usage u
      WHERE u.tenant_id = p_tenant AND u.period = usage_period(clock_timestamp()) AND u.kind = 'runs'), 0), true)
  THEN
    BEGIN
      IF p_wait THEN
        PERFORM pg_advisory_xact_lock_shared(v_lock);
      ELSIF NOT pg_try_advisory_xact_lock_shared(v_lock) THEN
        RETURN;
      END IF;
      SELECT * INTO room, quota, amount, taken, v_own FROM quota_room(p_tenant, p_new, p_quotas);
      IF room >= p_new + v_reserve AND v_own + p_new <= c_most THEN
        RETURN;
      END IF;
      RAISE EXCEPTION 'near' USING ERRCODE = 'TN020';
    EXCEPTION WHEN SQLSTATE 'TN020' THEN
      room := NULL;  -- And the shared lock is gone: two that had it would wait for each other.
    END;
  END IF;
  IF p_wait THEN
    PERFORM pg_advisory_xact_lock(v_lock);
  ELSIF NOT pg_try_advisory_xact_lock(v_lock) THEN
    RETURN;
  END IF;
  SELECT * INTO room, quota, amount, taken, v_own FROM quota_room(p_tenant, p_new, p_quotas);
END $$;
REVOKE ALL ON FUNCTION admit_runs(uuid, int, jsonb, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION admit_runs(uuid, int, jsonb, boolean) TO tenantry_app;

-- The quota of runs with the least room, as it can be seen now.
--   own  how many of this month's runs are this transaction's
CREATE OR REPLACE FUNCTION quota_room(
  p_tenant uuid, p_new int, p_quotas jsonb,
  OUT room double precision, OUT quota text, OUT amount double precision, OUT taken double precision,
  OUT own double precision
) LANGUAGE plpgsql AS $$
DECLARE
  v_limit double precision := (p_quotas ->> 'backlog')::double precision;
  v_waiting bigint;
BEGIN
  quota := 'runs';
  amount := (p_quotas ->> 'runs')::double precision;
  SELECT u.amount, u.own INTO taken, own FROM used(p_tenant, 'runs', usage_period(clock_timestamp())) u;
  room := coalesce(amount - taken, 'Infinity');
  IF v_limit IS NOT NULL THEN
    v_waiting := backlog(p_tenant, NULL, NULL, NULL, floor(v_limit)::bigint + 1);
    IF v_limit - v_waiting < room THEN
      room := v_limit - v_waiting;
      quota := 'backlog';
      amount := v_limit;
      taken := v_waiting;
    END IF;
  END IF;
END $$;
REVOKE ALL ON FUNCTION quota_room(uuid, int, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION quota_room(uuid, int, jsonb) TO tenantry_app;
