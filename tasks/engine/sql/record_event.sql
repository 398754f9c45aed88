-- Appends the event of the change that a run has just made. In PL/pgSQL, which keeps its plan: SQL would plan it anew.
CREATE OR REPLACE FUNCTION record_event(p_tenant uuid, p_run uuid, p_sequence int, p_state text, p_attempt int, p_note text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO run_events (tenant_id, run_id, sequence, state, attempt, note)
  VALUES (p_tenant, p_run, p_sequence, p_state, p_attempt, p_note);
END $$;
REVOKE ALL ON FUNCTION record_event(uuid, uuid, int, text, int, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION record_event(uuid, uuid, int, text, int, text) TO tenantry_app;
