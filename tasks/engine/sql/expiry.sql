-- Deletes idempotency keys that have expired: at most p_most, and none that somebody holds. Returns how many.
CREATE OR REPLACE FUNCTION delete_expired_keys(p_most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_deleted int;
BEGIN
  DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys WHERE expires_at < now() ORDER BY expires_at LIMIT p_most
    FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS v_deleted = ROW_COUNT;
  RETURN v_deleted;
END $$;
REVOKE ALL ON FUNCTION delete_expired_keys(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION delete_expired_keys(int) TO tenantry_system;

-- Deletes bulk actions that were finished before p_before: at most p_most, and none that somebody holds. Returns how
-- many.
CREATE OR REPLACE FUNCTION delete_finished_bulk_actions(p_before timestamptz, p_most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_deleted int;
BEGIN
  DELETE FROM bulk_actions WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM bulk_actions WHERE finished_at < p_before LIMIT p_most FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS v_deleted = ROW_COUNT;
  RETURN v_deleted;
END $$;
REVOKE ALL ON FUNCTION delete_finished_bulk_actions(timestamptz, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION delete_finished_bulk_actions(timestamptz, int) TO tenantry_system;

-- Looks at p_most effects behind the one of p_tenant and p_key, and deletes those begun before p_before that nobody can
-- ask for any more: neither the run whose effects they are is left, nor one that repeats it. Returns the last one that
-- it looked at; no row where none was left.
CREATE OR REPLACE FUNCTION delete_effects_of_no_run(p_before timestamptz, p_tenant uuid, p_key text, p_most int)
RETURNS TABLE (tenant_id uuid, key text) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
  v_last record;
BEGIN
  SELECT p.tenant_id, p.key INTO v_last FROM (
    SELECT e.tenant_id, e.key FROM effects e WHERE (e.tenant_id, e.key) > (p_tenant, p_key)
    ORDER BY e.tenant_id, e.key LIMIT p_most) p
  ORDER BY p.tenant_id DESC, p.key DESC LIMIT 1;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  WITH old AS MATERIALIZED (
    SELECT e.tenant_id, e.key, CASE WHEN e.key ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:'
                                    THEN left(e.key, 36)::uuid END AS run
    FROM effects e
    WHERE (e.tenant_id, e.key) > (p_tenant, p_key) AND (e.tenant_id, e.key) <= (v_last.tenant_id, v_last.key)
      AND e.created_at < p_before
  )
  DELETE FROM effects e USING old o
  WHERE e.tenant_id = o.tenant_id AND e.key = o.key
    AND NOT EXISTS (SELECT FROM runs r WHERE r.tenant_id = o.tenant_id AND r.id = o.run)
    AND NOT EXISTS (SELECT FROM runs r WHERE r.tenant_id = o.tenant_id AND r.effects_of = o.run);
  RETURN QUERY SELECT v_last.tenant_id, v_last.key;
END $$;
REVOKE ALL ON FUNCTION delete_effects_of_no_run(timestamptz, uuid, text, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION delete_effects_of_no_run(timestamptz, uuid, text, int) TO tenantry_system;
