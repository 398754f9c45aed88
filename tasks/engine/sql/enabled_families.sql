-- The families that a tenant has switched on, in one trip.
CREATE OR REPLACE FUNCTION enabled_families(p_tenant uuid) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('app.tenant_id', p_tenant::text, true);
  RETURN QUERY SELECT family FROM tenant_families WHERE tenant_id = p_tenant;
END $$;
REVOKE ALL ON FUNCTION enabled_families(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION enabled_families(uuid) TO tenantry_app;
