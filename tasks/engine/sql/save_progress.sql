-- How far a run says it is.
CREATE OR REPLACE FUNCTION save_progress(
  p_tenant uuid, p_run uuid, p_current double precision, p_total double precision, p_message text
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('app.tenant_id', p_tenant::text, true), set_config('synchronous_commit', 'off', true);
  INSERT INTO run_progress AS p (tenant_id, run_id, current, total, message)
  VALUES (p_tenant, p_run, p_current, p_total, p_message)
  ON CONFLICT (tenant_id, run_id) DO UPDATE
    SET current = excluded.current, total = excluded.total, message = excluded.message, at = clock_timestamp();
END $$;
REVOKE ALL ON FUNCTION save_progress(uuid, uuid, double precision, double precision, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION save_progress(uuid, uuid, double precision, double precision, text) TO tenantry_app;
