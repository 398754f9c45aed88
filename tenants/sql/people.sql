-- What people do who are in no tenant yet, or in several. Each function checks by itself that what it is asked for may
-- be done, by a row that stands for it: an invitation, a link that was mailed, a login that is open.

CREATE OR REPLACE FUNCTION find_invitation(
  p_tenant uuid, p_invitation uuid,
  OUT email text, OUT password_hash text, OUT suspended boolean
) RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT i.email, u.password_hash, t.suspended_at IS NOT NULL
  FROM public.invitations i
  JOIN public.tenants t ON t.id = i.tenant_id
  LEFT JOIN public.users u ON u.email = i.email
  WHERE i.tenant_id = p_tenant AND i.id = p_invitation
    AND i.accepted_at IS NULL AND i.revoked_at IS NULL AND i.expires_at > clock_timestamp()
$$;
REVOKE ALL ON FUNCTION find_invitation(uuid, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_invitation(uuid, uuid) TO tenantry_app;

-- The person behind an address, with the password that has been verified or is to be theirs. NULL when they have come
-- to have another in the meantime. For the functions here.
CREATE OR REPLACE FUNCTION settle_user(p_id uuid, p_email text, p_hash text) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
  v_user uuid;
BEGIN
  INSERT INTO public.users AS u (id, email, password_hash) VALUES (p_id, p_email, p_hash)
  ON CONFLICT (email) DO UPDATE SET password_hash = coalesce(u.password_hash, excluded.password_hash)
    WHERE coalesce(u.password_hash, excluded.password_hash) = excluded.password_hash
  RETURNING u.id INTO v_user;
  RETURN v_user;
END $$;
REVOKE ALL ON FUNCTION settle_user(uuid, text, text) FROM PUBLIC;

-- Makes the invited person a member, once; who is one already stays what they are. No row when the invitation is not
-- open any more, or the tenant is suspended.
CREATE OR REPLACE FUNCTION accept_invitation(
  p_tenant uuid, p_invitation uuid, p_user uuid, p_hash text, OUT user_id uuid, OUT joined boolean
) RETURNS SETOF record LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_invitation record;
BEGIN
  SELECT i.* INTO v_invitation
  FROM public.invitations i JOIN public.tenants t ON t.id = i.tenant_id
  WHERE i.tenant_id = p_tenant AND i.id = p_invitation AND t.suspended_at IS NULL
    AND i.accepted_at IS NULL AND i.revoked_at IS NULL AND i.expires_at > clock_timestamp()
  FOR UPDATE OF i;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  user_id := settle_user(p_user, v_invitation.email, p_hash);
  IF user_id IS NULL THEN
    RETURN;
  END IF;
  INSERT INTO public.memberships AS m (tenant_id, user_id, role, role_id)
  VALUES (p_tenant, accept_invitation.user_id, v_invitation.role, v_invitation.role_id)
  ON CONFLICT ON CONSTRAINT pk_memberships DO NOTHING;
  joined := FOUND;
  UPDATE public.invitations i SET accepted_at = clock_timestamp()
  WHERE i.tenant_id = p_tenant AND i.id = p_invitation;
  RETURN NEXT;
END $$;
REVOKE ALL ON FUNCTION accept_invitation(uuid, uuid, uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accept_invitation(uuid, uuid, uuid, text) TO tenantry_app;

-- A link that was mailed and is still good, whose address it went to, and whether a person has it.
CREATE OR REPLACE FUNCTION find_link(
  p_kind text, p_link uuid,
  OUT email text, OUT slug text, OUT known boolean, OUT password_hash text
) RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT l.email, l.detail->>'slug', u.id IS NOT NULL, u.password_hash
  FROM public.account_links l LEFT JOIN public.users u ON u.email = l.email
  WHERE l.id = p_link AND l.kind = p_kind AND l.used_at IS NULL AND l.expires_at > clock_timestamp()
$$;
REVOKE ALL ON FUNCTION find_link(text, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_link(text, uuid) TO tenantry_app;

-- Sets the password of the person a link was mailed to, once, and ends all of their logins, and all links of the kind.
CREATE OR REPLACE FUNCTION reset_password(p_link uuid, p_hash text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_email text;
  v_user uuid;
BEGIN
  UPDATE public.account_links l SET used_at = clock_timestamp()
  WHERE l.id = p_link AND l.kind = 'RESET' AND l.used_at IS NULL AND l.expires_at > clock_timestamp()
  RETURNING l.email INTO v_email;
  UPDATE public.users u SET password_hash = p_hash WHERE u.email = v_email RETURNING u.id INTO v_user;
  IF v_user IS NOT NULL THEN
    UPDATE public.account_links l SET used_at = clock_timestamp()
    WHERE l.email = v_email AND l.kind = 'RESET' AND l.used_at IS NULL;
    UPDATE public.login_sessions s SET revoked_at = clock_timestamp() WHERE s.user_id = v_user AND s.revoked_at IS NULL;
  END IF;
  RETURN v_user;
END $$;
REVOKE ALL ON FUNCTION reset_password(uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reset_password(uuid, text) TO tenantry_app;

-- Makes the tenant that a link was mailed for, with its owner, once. `gone` when the link is not good any more, `taken`
-- when the slug is another's: the link stays good then.
CREATE OR REPLACE FUNCTION sign_up(
  p_link uuid, p_tenant uuid, p_slug text, p_families text[], p_user uuid, p_hash text,
  OUT outcome text, OUT user_id uuid
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_link record;
BEGIN
  outcome := 'gone';
  SELECT l.* INTO v_link FROM public.account_links l
  WHERE l.id = p_link AND l.kind = 'SIGN_UP' AND l.used_at IS NULL AND l.expires_at > clock_timestamp()
  FOR UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  user_id := settle_user(p_user, v_link.email, p_hash);
  IF user_id IS NULL THEN
    RETURN;
  END IF;
  IF NOT create_tenant(p_tenant, p_slug, v_link.detail->>'name', v_link.detail->>'timezone', p_families) THEN
    outcome := 'taken';
    RETURN;
  END IF;
  INSERT INTO public.memberships (tenant_id, user_id, role) VALUES (p_tenant, sign_up.user_id, 'OWNER');
  UPDATE public.account_links l SET used_at = clock_timestamp() WHERE l.id = p_link;
  outcome := 'made';
END $$;
REVOKE ALL ON FUNCTION sign_up(uuid, uuid, text, text[], uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sign_up(uuid, uuid, text, text[], uuid, text) TO tenantry_app;

-- The password of the person whose open login this is.
CREATE OR REPLACE FUNCTION own_password(p_tenant uuid, p_login uuid) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT u.password_hash FROM public.login_sessions s JOIN public.users u ON u.id = s.user_id
  WHERE s.tenant_id = p_tenant AND s.id = p_login AND s.revoked_at IS NULL AND s.expires_at > clock_timestamp()
$$;
REVOKE ALL ON FUNCTION own_password(uuid, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION own_password(uuid, uuid) TO tenantry_app;

-- Replaces the password of the person whose open login this is, if it is still the one that was verified, and ends all
-- of their other logins, in every tenant.
CREATE OR REPLACE FUNCTION change_password(p_tenant uuid, p_login uuid, p_before text, p_hash text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_user uuid;
BEGIN
  UPDATE public.users u SET password_hash = p_hash
  FROM public.login_sessions s
  WHERE s.tenant_id = p_tenant AND s.id = p_login AND s.revoked_at IS NULL AND s.expires_at > clock_timestamp()
    AND u.id = s.user_id AND u.password_hash = p_before
  RETURNING u.id INTO v_user;
  UPDATE public.login_sessions s SET revoked_at = clock_timestamp()
  WHERE s.user_id = v_user AND s.revoked_at IS NULL AND NOT (s.tenant_id = p_tenant AND s.id = p_login);
  RETURN v_user IS NOT NULL;
END $$;
REVOKE ALL ON FUNCTION change_password(uuid, uuid, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION change_password(uuid, uuid, text, text) TO tenantry_app;

-- The tenants of the person whose open login this is, if their own password opened it; else that login's alone.
CREATE OR REPLACE FUNCTION tenants_of(
  p_tenant uuid, p_login uuid,
  OUT tenant_id uuid, OUT slug text, OUT name text, OUT role text, OUT role_name text, OUT user_id uuid
) RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.id, t.slug, t.name, m.role, r.name, m.user_id
  FROM public.login_sessions s
  JOIN public.memberships m ON m.user_id = s.user_id AND (s.by_password OR m.tenant_id = s.tenant_id)
  JOIN public.tenants t ON t.id = m.tenant_id
  LEFT JOIN public.roles r ON r.tenant_id = m.tenant_id AND r.id = m.role_id
  WHERE s.tenant_id = p_tenant AND s.id = p_login AND s.revoked_at IS NULL AND s.expires_at > clock_timestamp()
  ORDER BY t.slug
$$;
REVOKE ALL ON FUNCTION tenants_of(uuid, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tenants_of(uuid, uuid) TO tenantry_app;
