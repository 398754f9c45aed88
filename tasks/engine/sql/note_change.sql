-- A tenant's row carries the transaction that last changed what the dispatcher goes by: the row itself, a limit, a pause.
CREATE OR REPLACE FUNCTION note_tenant_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.changed := pg_current_xact_id();
  RETURN NEW;
END $$;
REVOKE ALL ON FUNCTION note_tenant_change() FROM PUBLIC;

CREATE OR REPLACE FUNCTION note_change_of_tenant() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  UPDATE tenants SET changed = pg_current_xact_id() WHERE id = coalesce(NEW.tenant_id, OLD.tenant_id);
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION note_change_of_tenant() FROM PUBLIC;
