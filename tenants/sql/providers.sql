-- Logins through identity providers: what is found before the tenant is known, and the person behind an address.

-- The tenant of this slug, if it has a provider of this name.
CREATE OR REPLACE FUNCTION find_provider(p_slug text, p_name text) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.id FROM public.tenants t JOIN public.identity_providers p ON p.tenant_id = t.id
  WHERE t.slug = p_slug AND p.name = p_name
$$;
REVOKE ALL ON FUNCTION find_provider(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_provider(text, text) TO tenantry_app;

-- Makes the person behind an address a member of the session's tenant, and the person too when there is none, without a
-- password; provided that the tenant's provider brings in people of the address's domain. NULL when it does not.
CREATE OR REPLACE FUNCTION bring_in(p_provider text, p_user uuid, p_email text, p_role text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_tenant uuid := nullif(current_setting('app.tenant_id', true), '')::uuid;
  v_user uuid;
BEGIN
  IF NOT EXISTS (
    SELECT FROM public.identity_providers p
    WHERE p.tenant_id = v_tenant AND p.name = p_provider AND p.just_in_time
      AND split_part(p_email, '@', 2) = ANY (p.domains)
  ) OR p_role = 'OWNER' THEN
    RETURN NULL;
  END IF;
  INSERT INTO public.users AS u (id, email) VALUES (p_user, p_email)
  ON CONFLICT (email) DO UPDATE SET email = u.email
  RETURNING u.id INTO v_user;
  INSERT INTO public.memberships (tenant_id, user_id, role) VALUES (v_tenant, v_user, p_role)
  ON CONFLICT ON CONSTRAINT pk_memberships DO NOTHING;
  RETURN v_user;
END $$;
REVOKE ALL ON FUNCTION bring_in(text, uuid, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bring_in(text, uuid, text, text) TO tenantry_app;
