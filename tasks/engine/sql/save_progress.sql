-- How far a run says it is, under the fence that it still has. Under the tenant's lock, for nothing here holds the run:
-- a row that came after those of an erased tenant would stay.
CREATE OR REPLACE FUNCTION save_progress(
  p_tenant uuid, p_run uuid, p_fence bigint, p_current double precision, p_total double precision, p_message text
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('app.tenant_id', p_tenant::text, true), set_config('synchronous_commit', 'off', true),
    pg_advisory_xact_lock_shared(tenant_lock(p_tenant));
  INSERT INTO run_progress AS p (tenant_id, run_id, current, total, message)
  SELECT r.tenant_id, r.id, p_current, p_total, p_message FROM runs r JOIN tenants t ON t.id = r.tenant_id
  WHERE r.tenant_id = p_tenant AND r.id = p_run AND r.fence = p_fence AND t.erasing_since IS NULL
  ON CONFLICT (tenant_id, run_id) DO UPDATE
    SET current = excluded.current, total = excluded.total, message = excluded.message, at = clock_timestamp();
END $$;
REVOKE ALL ON FUNCTION save_progress(uuid, uuid, bigint, double precision, double precision, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION save_progress(uuid, uuid, bigint, double precision, double precision, text) TO tenantry_app;
