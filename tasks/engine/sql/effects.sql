-- Before an outside call: the effect's row, committed. Returns what an earlier call left, or that this one is the first:
-- the row then carries this call's token, so that asking again after a lost answer is still the first. Where another
-- attempt that is still at work holds it (two replays of one run share their effects), it is busy; a dead one's is taken
-- over.
--   TN010 fenced     TN012 the run is to be cancelled: nothing more begins outside
CREATE OR REPLACE FUNCTION begin_effect(p_tenant uuid, p_run uuid, p_fence bigint, p_key text, p_token uuid)
RETURNS TABLE (fresh boolean, busy boolean, confirmed boolean, answer jsonb) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_effect effects;
BEGIN
  PERFORM set_config('app.tenant_id', p_tenant::text, true);
  LOOP -- Between the two another may have forgotten the row that was there.
    INSERT INTO effects (tenant_id, key, run_id, fence, token) VALUES (p_tenant, p_key, p_run, p_fence, p_token)
    ON CONFLICT (tenant_id, key) DO NOTHING;
    SELECT * INTO v_effect FROM effects e WHERE e.tenant_id = p_tenant AND e.key = p_key FOR UPDATE;
    EXIT WHEN FOUND;
  END LOOP;
  busy := NOT v_effect.confirmed AND v_effect.run_id <> p_run AND EXISTS (
    SELECT FROM run_leases l WHERE l.tenant_id = p_tenant AND l.run_id = v_effect.run_id AND l.fence = v_effect.fence
      AND l.expires_at > clock_timestamp()
  );
  IF NOT busy AND NOT v_effect.confirmed THEN
    UPDATE effects e SET run_id = p_run, fence = p_fence WHERE e.tenant_id = p_tenant AND e.key = p_key;
  END IF;
  PERFORM hold_lease(p_run, p_fence);
  IF NOT v_effect.confirmed AND (
    SELECT l.cancel FROM run_leases l WHERE l.tenant_id = p_tenant AND l.run_id = p_run AND l.fence = p_fence
  ) THEN
    RAISE EXCEPTION 'cancelled' USING ERRCODE = 'TN012';
  END IF;
  RETURN QUERY SELECT v_effect.token = p_token, busy, v_effect.confirmed, v_effect.answer;
END $$;
REVOKE ALL ON FUNCTION begin_effect(uuid, uuid, bigint, text, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION begin_effect(uuid, uuid, bigint, text, uuid) TO tenantry_app;

-- After it: the answer.
--   TN010 fenced
CREATE OR REPLACE FUNCTION finish_effect(p_tenant uuid, p_run uuid, p_fence bigint, p_key text, p_answer jsonb)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('app.tenant_id', p_tenant::text, true);
  UPDATE effects SET confirmed = true, answer = p_answer
  WHERE tenant_id = p_tenant AND key = p_key AND run_id = p_run AND fence = p_fence;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'fenced: another took the effect over' USING ERRCODE = 'TN010';
  END IF;
  PERFORM hold_lease(p_run, p_fence);
END $$;
REVOKE ALL ON FUNCTION finish_effect(uuid, uuid, bigint, text, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION finish_effect(uuid, uuid, bigint, text, jsonb) TO tenantry_app;

-- The call was refused before anything happened outside: the key is free again.
CREATE OR REPLACE FUNCTION forget_effect(p_tenant uuid, p_run uuid, p_fence bigint, p_key text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('app.tenant_id', p_tenant::text, true);
  DELETE FROM effects
  WHERE tenant_id = p_tenant AND key = p_key AND run_id = p_run AND fence = p_fence AND NOT confirmed;
  PERFORM hold_lease(p_run, p_fence);
END $$;
REVOKE ALL ON FUNCTION forget_effect(uuid, uuid, bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION forget_effect(uuid, uuid, bigint, text) TO tenantry_app;
