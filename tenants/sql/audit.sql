-- The hash of an entry and of the one before it. SHA-256 over JSON, in which a moment is a number of seconds.
CREATE OR REPLACE FUNCTION audit_hash(
  p_before bytea, p_position bigint, p_tenant uuid, p_id uuid, p_at timestamptz, p_actor_kind text, p_actor text,
  p_action text, p_target text, p_detail jsonb
) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT sha256(coalesce(p_before, '\x') || convert_to(jsonb_build_array(p_position, p_tenant, p_id,
    extract(epoch FROM p_at), p_actor_kind, p_actor, p_action, p_target, p_detail)::text, 'UTF8'))
$$;
REVOKE ALL ON FUNCTION audit_hash(bytea, bigint, uuid, uuid, timestamptz, text, text, text, text, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_hash(bytea, bigint, uuid, uuid, timestamptz, text, text, text, text, jsonb)
  TO tenantry_app;

-- Seals entries of all tenants, of each its oldest transactions first: position and hash. Only what no transaction that
-- is still open can precede is sealed, so that the order of the chain is the order of the transactions. Each tenant that
-- waits has an equal share of the portion, at least one entry, and where they are too many, who has waited longest
-- comes first: so none waits behind the many entries of another. One at a time: whoever comes second does nothing.
-- Returns how many were sealed.
CREATE OR REPLACE FUNCTION seal_audit(p_most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_before xid8;
  v_tenants uuid[];
  v_tenant uuid;
  v_entry record;
  v_position bigint;
  v_hash bytea;
  v_sealed int := 0;
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtext('seal_audit')) THEN
    RETURN 0;
  END IF;
  v_before := pg_snapshot_xmin(pg_current_snapshot());
  WITH RECURSIVE waiting (tenant_id, xid) AS (
    (SELECT e.tenant_id, e.xid FROM audit_entries e WHERE e.position IS NULL ORDER BY e.tenant_id, e.xid LIMIT 1)
    UNION ALL
    SELECT next.* FROM waiting w, LATERAL (
      SELECT e.tenant_id, e.xid FROM audit_entries e WHERE e.position IS NULL AND e.tenant_id > w.tenant_id
      ORDER BY e.tenant_id, e.xid LIMIT 1) next
  )
  SELECT array_agg(w.tenant_id) INTO v_tenants
  FROM (SELECT w.tenant_id FROM waiting w WHERE w.xid < v_before ORDER BY w.xid LIMIT p_most) w;
  FOREACH v_tenant IN ARRAY coalesce(v_tenants, '{}') LOOP
    SELECT e.position, e.hash INTO v_position, v_hash
    FROM audit_entries e WHERE e.tenant_id = v_tenant AND e.position IS NOT NULL ORDER BY e.position DESC LIMIT 1;
    FOR v_entry IN
      SELECT * FROM audit_entries e WHERE e.tenant_id = v_tenant AND e.position IS NULL AND e.xid < v_before
      ORDER BY e.xid, e.id LIMIT p_most / cardinality(v_tenants)
    LOOP
      v_position := coalesce(v_position, 0) + 1;
      v_hash := audit_hash(v_hash, v_position, v_entry.tenant_id, v_entry.id, v_entry.at, v_entry.actor_kind,
                           v_entry.actor, v_entry.action, v_entry.target, v_entry.detail);
      UPDATE audit_entries e SET position = v_position, hash = v_hash
      WHERE e.tenant_id = v_tenant AND e.id = v_entry.id;
      v_sealed := v_sealed + 1;
    END LOOP;
  END LOOP;
  RETURN v_sealed;
END $$;
REVOKE ALL ON FUNCTION seal_audit(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION seal_audit(int) TO tenantry_system;

-- Computes the chain of the session's tenant again: how many are in it, how many wait for the seal, the hash of the
-- last, and the first position that does not fit.
CREATE OR REPLACE FUNCTION verify_audit() RETURNS TABLE (sealed bigint, waiting bigint, head text, broken bigint)
LANGUAGE plpgsql STABLE AS $$
DECLARE
  v_entry record;
  v_hash bytea;
BEGIN
  sealed := 0;
  SELECT count(*) INTO waiting FROM audit_entries e WHERE e.position IS NULL;
  FOR v_entry IN SELECT * FROM audit_entries e WHERE e.position IS NOT NULL ORDER BY e.position LOOP
    sealed := sealed + 1;
    v_hash := audit_hash(v_hash, sealed, v_entry.tenant_id, v_entry.id, v_entry.at, v_entry.actor_kind, v_entry.actor,
                         v_entry.action, v_entry.target, v_entry.detail);
    IF broken IS NULL AND (v_entry.position <> sealed OR v_entry.hash IS DISTINCT FROM v_hash) THEN
      broken := sealed;
    END IF;
    v_hash := v_entry.hash;
  END LOOP;
  head := encode(v_hash, 'hex');
  RETURN NEXT;
END $$;
REVOKE ALL ON FUNCTION verify_audit() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION verify_audit() TO tenantry_app;
