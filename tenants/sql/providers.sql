-- Logins through identity providers: what is found before the tenant is known, and the person behind an address.

-- The tenant of this slug, if it has a provider of this name.
CREATE OR REPLACE FUNCTION find_provider(p_slug text, p_name text) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.id FROM public.tenants t JOIN public.identity_providers p ON p.tenant_id = t.id
  WHERE t.slug = p_slug AND p.name = p_name
$$;
REVOKE ALL ON FUNCTION find_provider(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_provider(text, text) TO tenantry_app;

-- The person behind an address, made when there is none, without a password; provided that the tenant is not suspended,
-- and its provider brings in people of the address's domain. NULL when not.
CREATE OR REPLACE FUNCTION bring_in(p_provider text, p_user uuid, p_email text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF EXISTS (
    SELECT FROM public.identity_providers p JOIN public.tenants t ON t.id = p.tenant_id AND t.suspended_at IS NULL
    WHERE p.tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid AND p.name = p_provider
      AND p.just_in_time AND split_part(p_email, '@', 2) = ANY (p.domains)
  ) THEN
    RETURN (settle_user(p_user, p_email, NULL)).user_id;
  END IF;
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION bring_in(text, uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bring_in(text, uuid, text) TO tenantry_app;
