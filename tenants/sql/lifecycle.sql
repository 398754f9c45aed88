-- The reserved tenant whose keys are the operators'.
CREATE OR REPLACE FUNCTION operators() RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
  SELECT '00000000-0000-7000-8000-000000000001'::uuid
$$;
REVOKE ALL ON FUNCTION operators() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION operators() TO tenantry_app;

-- Suspends a tenant: nothing of it starts, what runs is stopped and waits. One that is suspended stays as it is.
-- What was told of it stands in its audit log. False where there is no such tenant.
CREATE OR REPLACE FUNCTION suspend_tenant(p_tenant uuid, p_entry uuid, p_actor text, p_note text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_before timestamptz;
BEGIN
  SELECT t.suspended_at INTO v_before FROM tenants t WHERE t.id = p_tenant FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  IF v_before IS NULL THEN
    UPDATE tenants SET suspended_at = clock_timestamp() WHERE id = p_tenant;
    PERFORM record_operation(p_tenant, p_entry, p_actor, 'tenant.suspend', NULL, jsonb_build_object('reason', p_note));
  END IF;
  RETURN true;
END $$;
REVOKE ALL ON FUNCTION suspend_tenant(uuid, uuid, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION suspend_tenant(uuid, uuid, text, text) TO tenantry_system;

-- Lets a tenant go on. False where there is no such tenant, or it is being erased.
CREATE OR REPLACE FUNCTION resume_tenant(p_tenant uuid, p_entry uuid, p_actor text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_before tenants;
BEGIN
  SELECT * INTO v_before FROM tenants t WHERE t.id = p_tenant FOR UPDATE;
  IF NOT FOUND OR v_before.erasing_since IS NOT NULL THEN
    RETURN false;
  END IF;
  IF v_before.suspended_at IS NOT NULL THEN
    UPDATE tenants SET suspended_at = NULL WHERE id = p_tenant;
    PERFORM record_operation(p_tenant, p_entry, p_actor, 'tenant.resume', NULL, '{}');
  END IF;
  RETURN true;
END $$;
REVOKE ALL ON FUNCTION resume_tenant(uuid, uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION resume_tenant(uuid, uuid, text) TO tenantry_system;

-- Begins to erase a tenant, for good: it is suspended and can't be resumed. The operators' audit log tells of it, for
-- the tenant's own goes with it. False where there is no such tenant, or it is the operators' own.
CREATE OR REPLACE FUNCTION begin_erasure(p_tenant uuid, p_entry uuid, p_actor text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_before tenants;
BEGIN
  SELECT * INTO v_before FROM tenants t WHERE t.id = p_tenant AND t.id <> operators() FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  IF v_before.erasing_since IS NULL THEN
    UPDATE tenants SET suspended_at = coalesce(suspended_at, clock_timestamp()), erasing_since = clock_timestamp()
    WHERE id = p_tenant;
    PERFORM record_operation(operators(), p_entry, p_actor, 'tenant.erase', v_before.slug,
                             jsonb_build_object('id', p_tenant));
  END IF;
  RETURN true;
END $$;
REVOKE ALL ON FUNCTION begin_erasure(uuid, uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION begin_erasure(uuid, uuid, text) TO tenantry_system;

-- An entry that the system login makes in a tenant's audit log.
CREATE OR REPLACE FUNCTION record_operation(
  p_tenant uuid, p_entry uuid, p_actor text, p_action text, p_target text, p_detail jsonb
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO audit_entries (tenant_id, id, actor_kind, actor, action, target, detail)
  VALUES (p_tenant, p_entry, 'OPERATOR', p_actor, p_action, p_target, p_detail);
END $$;
REVOKE ALL ON FUNCTION record_operation(uuid, uuid, text, text, text, jsonb) FROM PUBLIC;

-- The lock that every transaction inside a tenant shares until its end.
CREATE OR REPLACE FUNCTION tenant_lock(p_tenant uuid) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT hashtextextended(p_tenant::text, 0)
$$;
REVOKE ALL ON FUNCTION tenant_lock(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tenant_lock(uuid) TO tenantry_app;

-- Enters a tenant for the rest of the transaction, under its lock: whoever erases it waits for those inside, and who
-- comes later is refused.
--   TN007 there is no such tenant any more
CREATE OR REPLACE FUNCTION enter_tenant(p_tenant uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('app.tenant_id', p_tenant::text, true), pg_advisory_xact_lock_shared(tenant_lock(p_tenant));
  PERFORM FROM tenants t WHERE t.id = p_tenant AND t.erasing_since IS NULL;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no such tenant' USING ERRCODE = 'TN007';
  END IF;
END $$;
REVOKE ALL ON FUNCTION enter_tenant(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION enter_tenant(uuid) TO tenantry_app;

-- Whether nobody is inside a tenant that is being erased any more: no transaction, no attempt with a lease.
CREATE OR REPLACE FUNCTION is_deserted(p_tenant uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  RETURN pg_try_advisory_xact_lock(tenant_lock(p_tenant)) AND NOT EXISTS (
    SELECT FROM run_leases l WHERE l.tenant_id = p_tenant AND l.expires_at > clock_timestamp());
END $$;
REVOKE ALL ON FUNCTION is_deserted(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION is_deserted(uuid) TO tenantry_system;

-- Every table that holds tenants' rows, partitions by themselves.
CREATE OR REPLACE FUNCTION tenant_tables() RETURNS SETOF regclass LANGUAGE sql STABLE AS $$
  SELECT c.oid::regclass FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
  WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND NOT a.attisdropped
  ORDER BY c.oid
$$;
REVOKE ALL ON FUNCTION tenant_tables() FROM PUBLIC;

-- How many rows of a tenant each table has; only those that have some.
CREATE OR REPLACE FUNCTION tenant_rows(p_tenant uuid) RETURNS TABLE (name text, total bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_table regclass;
BEGIN
  FOR v_table IN SELECT tenant_tables() UNION ALL SELECT 'tenants'::regclass LOOP
    name := v_table::text;
    EXECUTE format('SELECT count(*) FROM %s WHERE %I = $1', v_table,
                   CASE name WHEN 'tenants' THEN 'id' ELSE 'tenant_id' END) INTO total USING p_tenant;
    IF total > 0 THEN
      RETURN NEXT;
    END IF;
  END LOOP;
END $$;
REVOKE ALL ON FUNCTION tenant_rows(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tenant_rows(uuid) TO tenantry_system;

-- Deletes rows of a tenant that is being erased: at most p_most, of one table. Returns how many; 0 where none is left
-- but its own and its memberships, which `end_tenant` deletes.
CREATE OR REPLACE FUNCTION erase_rows(p_tenant uuid, p_most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_table regclass;
  v_deleted int;
  v_held boolean := false;
BEGIN
  PERFORM 1 FROM tenants t WHERE t.id = p_tenant AND t.erasing_since IS NOT NULL;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'not being erased' USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  FOR v_table IN SELECT t FROM tenant_tables() t WHERE t <> 'memberships'::regclass LOOP
    BEGIN
      EXECUTE format(
        'DELETE FROM %1$s WHERE ctid = ANY (ARRAY(SELECT ctid FROM %1$s WHERE tenant_id = $1 LIMIT $2 FOR UPDATE))',
        v_table
      ) USING p_tenant, p_most;
      GET DIAGNOSTICS v_deleted = ROW_COUNT;
      IF v_deleted > 0 THEN
        RETURN v_deleted;
      END IF;
    EXCEPTION WHEN foreign_key_violation THEN
      v_held := true; -- Rows of another table point here: those go first.
    END;
  END LOOP;
  IF v_held THEN
    RAISE EXCEPTION 'rows hold one another' USING ERRCODE = 'foreign_key_violation';
  END IF;
  RETURN 0;
END $$;
REVOKE ALL ON FUNCTION erase_rows(uuid, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION erase_rows(uuid, int) TO tenantry_system;

-- The end of a tenant that is being erased: its own row, its memberships, and by `forget_person` the people who are
-- members nowhere else. They are locked before, in one order, as two tenants with the same people may end at once.
CREATE OR REPLACE FUNCTION end_tenant(p_tenant uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  PERFORM 1 FROM tenants t WHERE t.id = p_tenant AND t.erasing_since IS NOT NULL FOR UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  PERFORM FROM users u WHERE u.id IN (SELECT m.user_id FROM memberships m WHERE m.tenant_id = p_tenant)
  ORDER BY u.id FOR UPDATE;
  DELETE FROM memberships m WHERE m.tenant_id = p_tenant;
  DELETE FROM tenants t WHERE t.id = p_tenant;
END $$;
REVOKE ALL ON FUNCTION end_tenant(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION end_tenant(uuid) TO tenantry_system;
