-- What must be found before a tenant is known, and what is made for a tenant from outside it. Each function returns
-- just what its caller needs; whose rows they are is decided by the argument, never by the session.

CREATE OR REPLACE FUNCTION find_login(
  p_slug text, p_email text,
  OUT tenant_id uuid, OUT user_id uuid, OUT password_hash text
) RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.id, u.id, u.password_hash
  FROM public.tenants t
  JOIN public.memberships m ON m.tenant_id = t.id
  JOIN public.users u ON u.id = m.user_id
  WHERE t.slug = p_slug AND u.email = p_email
$$;
REVOKE ALL ON FUNCTION find_login(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_login(text, text) TO tenantry_app;

-- A login that a password opened has ended where passwords are good no more, and its person is no owner.
CREATE OR REPLACE FUNCTION find_session(
  p_tenant uuid, p_session uuid,
  OUT user_id uuid, OUT email text, OUT role text, OUT role_name text, OUT role_scopes text[],
  OUT expires_at timestamptz, OUT revoked_at timestamptz, OUT suspended boolean
) RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT u.id, u.email, m.role, r.name, r.scopes, s.expires_at,
         CASE WHEN t.sso_only AND s.provider IS NULL AND m.role IS DISTINCT FROM 'OWNER'
              THEN coalesce(s.revoked_at, s.created_at) ELSE s.revoked_at END,
         t.suspended_at IS NOT NULL
  FROM public.login_sessions s
  JOIN public.tenants t ON t.id = s.tenant_id
  JOIN public.memberships m ON m.tenant_id = s.tenant_id AND m.user_id = s.user_id
  JOIN public.users u ON u.id = s.user_id
  LEFT JOIN public.roles r ON r.tenant_id = m.tenant_id AND r.id = m.role_id
  WHERE s.tenant_id = p_tenant AND s.id = p_session
$$;
REVOKE ALL ON FUNCTION find_session(uuid, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_session(uuid, uuid) TO tenantry_app;

-- The first of the hashes is the one that new keys are stored under. Who leaves has their keys revoked; one that they
-- were making at that moment comes after it, and has ended because its maker is no member.
CREATE OR REPLACE FUNCTION find_api_key(
  p_hashes text[],
  OUT tenant_id uuid, OUT key_id uuid, OUT scopes text[], OUT task_names text[],
  OUT address_ranges text[], OUT expires_at timestamptz, OUT revoked_at timestamptz, OUT last_used_at timestamptz,
  OUT suspended boolean, OUT made_by uuid, OUT outdated boolean
) RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.id, k.id, k.scopes, k.task_names, k.address_ranges, k.expires_at,
         CASE WHEN k.made_by IS NULL OR EXISTS (
           SELECT FROM public.memberships m WHERE m.tenant_id = k.tenant_id AND m.user_id = k.made_by
         ) THEN k.revoked_at ELSE coalesce(k.revoked_at, k.created_at) END,
         k.last_used_at, t.suspended_at IS NOT NULL, k.made_by, k.secret_hash <> p_hashes[1]
  FROM public.api_keys k
  JOIN public.tenants t ON t.id = k.tenant_id
  WHERE k.secret_hash = ANY (p_hashes)
$$;
REVOKE ALL ON FUNCTION find_api_key(text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_api_key(text[]) TO tenantry_app;

-- The person behind an address, made when there is none, and locked, so that of two who make a person a member one
-- comes second. A password is set once and never replaced here. For the functions of this folder.
CREATE OR REPLACE FUNCTION settle_user(
  p_id uuid, p_email text, p_hash text, OUT user_id uuid, OUT password_hash text
) LANGUAGE sql AS $$
  INSERT INTO public.users AS u (id, email, password_hash) VALUES (p_id, p_email, p_hash)
  ON CONFLICT (email) DO UPDATE SET password_hash = coalesce(u.password_hash, excluded.password_hash)
  RETURNING u.id, u.password_hash
$$;
REVOKE ALL ON FUNCTION settle_user(uuid, text, text) FROM PUBLIC;

-- The person behind an address, for operators.
CREATE OR REPLACE FUNCTION enroll_user(
  p_id uuid, p_email text, p_hash text, OUT user_id uuid, OUT password_hash text
) LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT * FROM settle_user(p_id, p_email, p_hash)
$$;
REVOKE ALL ON FUNCTION enroll_user(uuid, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION enroll_user(uuid, text, text) TO tenantry_system;

-- The first entry of the tenant's audit log tells who made it. False when the slug is taken.
CREATE OR REPLACE FUNCTION create_tenant(
  p_id uuid, p_slug text, p_name text, p_timezone text, p_families text[], p_actor_kind text, p_actor text
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  INSERT INTO public.tenants (id, slug, name, timezone) VALUES (p_id, p_slug, p_name, p_timezone)
  ON CONFLICT (slug) DO NOTHING;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  INSERT INTO public.tenant_families (tenant_id, family) SELECT p_id, unnest(p_families);
  INSERT INTO public.audit_entries (tenant_id, id, actor_kind, actor, action, target, detail)
  VALUES (p_id, new_id(), p_actor_kind, p_actor, 'tenant.create', show_id('ten', p_id),
          jsonb_build_object('after', jsonb_build_object(
            'slug', p_slug, 'name', p_name, 'timezone', p_timezone, 'families', p_families)));
  RETURN true;
END $$;
REVOKE ALL ON FUNCTION create_tenant(uuid, text, text, text, text[], text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_tenant(uuid, text, text, text, text[], text, text) TO tenantry_system;
