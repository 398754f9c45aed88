-- The month that usage is counted in: its first day, in UTC.
CREATE OR REPLACE FUNCTION usage_period(p_at timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS $$
  SELECT date_trunc('month', p_at AT TIME ZONE 'UTC')::date
$$;
REVOKE ALL ON FUNCTION usage_period(timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION usage_period(timestamptz) TO tenantry_app;

-- What a tenant may use: its plan's quotas, and its own where it has some. A name that is missing or null has no limit.
CREATE OR REPLACE FUNCTION quotas_of(p_tenant uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN (SELECT p.quotas || t.quotas FROM tenants t JOIN plans p ON p.name = t.plan WHERE t.id = p_tenant);
END $$;
REVOKE ALL ON FUNCTION quotas_of(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION quotas_of(uuid) TO tenantry_app;

-- What a tenant has used in a month: what has been folded and what has not, in one snapshot.
--   own  the part of it that this transaction has used
CREATE OR REPLACE FUNCTION used(p_tenant uuid, p_kind text, p_period date, OUT amount double precision, OUT own double precision)
LANGUAGE plpgsql STABLE AS $$
BEGIN
  SELECT coalesce((SELECT u.amount FROM usage u WHERE u.tenant_id = p_tenant AND u.period = p_period AND u.kind = p_kind), 0)
           + coalesce(sum(e.amount), 0),
         coalesce(sum(e.amount) FILTER (WHERE e.xid = pg_current_xact_id_if_assigned()), 0)
    INTO amount, own
  FROM usage_entries e WHERE e.tenant_id = p_tenant AND e.kind = p_kind AND e.period = p_period;
END $$;
REVOKE ALL ON FUNCTION used(uuid, text, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION used(uuid, text, date) TO tenantry_app;

-- Counts what a tenant has used, as a row of its own: nobody waits for anybody. fold_usage adds it up.
CREATE OR REPLACE FUNCTION count_usage(p_tenant uuid, p_kind text, p_amount double precision) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO usage_entries (tenant_id, kind, period, amount)
  VALUES (p_tenant, p_kind, usage_period(clock_timestamp()), p_amount);
END $$;
REVOKE ALL ON FUNCTION count_usage(uuid, text, double precision) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION count_usage(uuid, text, double precision) TO tenantry_app;

-- The lock under which a tenant's quota of this name is counted exactly.
CREATE OR REPLACE FUNCTION quota_lock(p_tenant uuid, p_quota text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT hashtextextended('quota:' || p_quota || ':' || p_tenant, 0)
$$;
REVOKE ALL ON FUNCTION quota_lock(uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION quota_lock(uuid, text) TO tenantry_app;

-- Tells a tenant's audit log, once a month, that it has used 80 % of a quota.
--   p_entry  the id of the entry
CREATE OR REPLACE FUNCTION note_quota(
  p_tenant uuid, p_entry uuid, p_quota text, p_limit double precision, p_used double precision
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF p_used < 0.8 * p_limit THEN
    RETURN;
  END IF;
  INSERT INTO usage AS u (tenant_id, period, kind, alarmed_at)
  VALUES (p_tenant, usage_period(clock_timestamp()), p_quota, clock_timestamp())
  ON CONFLICT (tenant_id, period, kind) DO UPDATE SET alarmed_at = excluded.alarmed_at WHERE u.alarmed_at IS NULL;
  IF FOUND THEN
    INSERT INTO audit_entries (tenant_id, id, actor_kind, actor, action, target, detail)
    VALUES (p_tenant, p_entry, 'OPERATOR', 'tenantry', 'quota.alarm', p_quota,
            jsonb_build_object('limit', p_limit, 'used', p_used));
  END IF;
END $$;
REVOKE ALL ON FUNCTION note_quota(uuid, uuid, text, double precision, double precision) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION note_quota(uuid, uuid, text, double precision, double precision) TO tenantry_app;

-- Adds what was used to each tenant's figures, at most p_most entries, and none that somebody holds; then looks at the
-- quotas of those tenants. Returns how many.
CREATE OR REPLACE FUNCTION fold_usage(p_most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_folded bigint;
  v_tenants uuid[];
  v_quota record;
BEGIN
  WITH gone AS (
    DELETE FROM usage_entries WHERE ctid = ANY (ARRAY(
      SELECT ctid FROM usage_entries LIMIT p_most FOR UPDATE SKIP LOCKED))
    RETURNING tenant_id, period, kind, amount
  ), summed AS (
    SELECT g.tenant_id, g.period, g.kind, sum(g.amount) AS amount, count(*) AS entries FROM gone g GROUP BY 1, 2, 3
  ), kept AS (
    INSERT INTO usage AS u (tenant_id, period, kind, amount)
    SELECT s.tenant_id, s.period, s.kind, s.amount FROM summed s JOIN tenants t ON t.id = s.tenant_id ORDER BY 1, 2, 3
    ON CONFLICT (tenant_id, period, kind) DO UPDATE SET amount = u.amount + excluded.amount
  )
  SELECT coalesce(sum(s.entries), 0), array_agg(DISTINCT s.tenant_id) INTO v_folded, v_tenants FROM summed s;
  FOR v_quota IN
    SELECT t.id AS tenant, q.key AS name, q.value::double precision AS most, coalesce(u.amount, 0) AS used, u.alarmed_at
    FROM tenants t JOIN plans p ON p.name = t.plan
    CROSS JOIN LATERAL jsonb_each_text(p.quotas || t.quotas) AS q
    LEFT JOIN usage u ON u.tenant_id = t.id AND u.period = usage_period(clock_timestamp()) AND u.kind = q.key
    WHERE t.id = ANY (v_tenants) AND q.key IN ('runs', 'uploadBytes', 'backlog') AND q.value IS NOT NULL
      AND u.alarmed_at IS NULL
    ORDER BY t.id, q.key
  LOOP
    PERFORM note_quota(v_quota.tenant, new_id(), v_quota.name, v_quota.most, CASE v_quota.name
      WHEN 'backlog' THEN backlog(v_quota.tenant, NULL, NULL, NULL, floor(v_quota.most)::bigint) ELSE v_quota.used END);
  END LOOP;
  RETURN v_folded;
END $$;
REVOKE ALL ON FUNCTION fold_usage(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION fold_usage(int) TO tenantry_system;

-- Gives a tenant a plan, and quotas of its own in place of those it had. For the operators only, and told in the
-- tenant's audit log too. No row: there is no such tenant.
--   23503 there is no such plan
CREATE OR REPLACE FUNCTION assign_plan(
  p_slug text, p_plan text, p_quotas jsonb, p_entry uuid, p_actor_kind text, p_actor text,
  OUT tenant_id uuid, OUT before jsonb, OUT after jsonb
) RETURNS SETOF record LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF nullif(current_setting('app.tenant_id', true), '')::uuid IS DISTINCT FROM operators() THEN
    RAISE EXCEPTION 'for operators only' USING ERRCODE = 'insufficient_privilege';
  END IF;
  SELECT t.id, jsonb_build_object('plan', t.plan, 'quotas', t.quotas) INTO tenant_id, before
  FROM tenants t WHERE t.slug = p_slug FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  UPDATE tenants t SET plan = p_plan, quotas = p_quotas WHERE t.id = assign_plan.tenant_id;
  after := jsonb_build_object('plan', p_plan, 'quotas', p_quotas);
  IF before <> after THEN
    INSERT INTO audit_entries (tenant_id, id, actor_kind, actor, action, target, detail)
    VALUES (tenant_id, p_entry, p_actor_kind, p_actor, 'plan.assign', p_slug,
            jsonb_build_object('before', before, 'after', after));
  END IF;
  RETURN NEXT;
END $$;
REVOKE ALL ON FUNCTION assign_plan(text, text, jsonb, uuid, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION assign_plan(text, text, jsonb, uuid, text, text) TO tenantry_app;
