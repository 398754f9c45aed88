-- Which database of which cluster this is: a position in another one's history means nothing here.
CREATE OR REPLACE FUNCTION installation_identity() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT system_identifier || ':' || (SELECT oid FROM pg_database WHERE datname = current_database())
  FROM pg_control_system()
$$;
REVOKE ALL ON FUNCTION installation_identity() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION installation_identity() TO tenantry_app;
