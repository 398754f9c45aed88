-- What people do who are in no tenant yet, or in several. Each function checks by itself that what it is asked for may
-- be done, by a row that stands for it: an invitation, a link that was mailed, a login that is open.

-- An id as everybody outside sees it, made as `tenants/ids.py` does: the kind, and the number in Crockford's base 32.
CREATE OR REPLACE FUNCTION show_id(p_kind text, p_id uuid) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT p_kind || '_' || string_agg(
    substr('0123456789abcdefghjkmnpqrstvwxyz', substring(b.bits FROM d * 5 + 1 FOR 5)::bit(5)::int + 1, 1), '' ORDER BY d)
  FROM (SELECT B'00' || ('x' || replace(p_id::text, '-', ''))::bit(128) AS bits) b, generate_series(0, 25) d
$$;
REVOKE ALL ON FUNCTION show_id(text, uuid) FROM PUBLIC;

-- Tells the audit log of each tenant that a person is a member of what they did to their account; not that of one,
-- where there is one that knows. No tenant learns of another. For the functions here.
CREATE OR REPLACE FUNCTION tell_tenants_of(p_user uuid, p_action text, p_but uuid) RETURNS void LANGUAGE sql AS $$
  INSERT INTO public.audit_entries (tenant_id, id, actor_kind, actor, action, target, detail)
  SELECT m.tenant_id, public.new_id(), 'USER', public.show_id('usr', p_user), p_action,
         public.show_id('usr', p_user), '{}'
  FROM public.memberships m WHERE m.user_id = p_user AND m.tenant_id IS DISTINCT FROM p_but
$$;
REVOKE ALL ON FUNCTION tell_tenants_of(uuid, text, uuid) FROM PUBLIC;

-- Whose an open invitation is, with the password of who has the address already, and whether its tenant is suspended.
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

-- Accepts an invitation, once: the invited person, with the password that has been verified or is to be theirs, and the
-- role. No row when the invitation is not open any more, the tenant is suspended, or the person has come to have another
-- password meanwhile.
CREATE OR REPLACE FUNCTION accept_invitation(
  p_tenant uuid, p_invitation uuid, p_user uuid, p_hash text,
  OUT user_id uuid, OUT role text, OUT role_id uuid, OUT inviter uuid
) RETURNS SETOF record LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_email text;
  v_hash text;
BEGIN
  SELECT i.email, i.role, i.role_id, i.inviter
  INTO v_email, accept_invitation.role, accept_invitation.role_id, accept_invitation.inviter
  FROM public.invitations i JOIN public.tenants t ON t.id = i.tenant_id
  WHERE i.tenant_id = p_tenant AND i.id = p_invitation AND t.suspended_at IS NULL
    AND i.accepted_at IS NULL AND i.revoked_at IS NULL AND i.expires_at > clock_timestamp()
  FOR UPDATE OF i;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  SELECT s.user_id, s.password_hash INTO accept_invitation.user_id, v_hash FROM settle_user(p_user, v_email, p_hash) s;
  IF v_hash IS DISTINCT FROM p_hash THEN
    RETURN;
  END IF;
  UPDATE public.invitations i SET accepted_at = clock_timestamp()
  WHERE i.tenant_id = p_tenant AND i.id = p_invitation;
  RETURN NEXT;
END $$;
REVOKE ALL ON FUNCTION accept_invitation(uuid, uuid, uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accept_invitation(uuid, uuid, uuid, text) TO tenantry_app;

-- A link that was mailed and is still good, whose address it went to, and the person who has it.
CREATE OR REPLACE FUNCTION find_link(
  p_kind text, p_link uuid,
  OUT email text, OUT slug text, OUT user_id uuid, OUT password_hash text
) RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT l.email, l.detail->>'slug', u.id, u.password_hash
  FROM public.account_links l LEFT JOIN public.users u ON u.email = l.email
  WHERE l.id = p_link AND l.kind = p_kind AND l.used_at IS NULL AND l.expires_at > clock_timestamp()
$$;
REVOKE ALL ON FUNCTION find_link(text, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_link(text, uuid) TO tenantry_app;

-- Sets the password of the person a link was mailed to, once, and ends all of their logins, and all links of the kind.
-- All of their tenants are told.
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
    PERFORM tell_tenants_of(v_user, 'password.reset', NULL);
  END IF;
  RETURN v_user;
END $$;
REVOKE ALL ON FUNCTION reset_password(uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reset_password(uuid, text) TO tenantry_app;

-- Makes the tenant that a link was mailed for, with its owner, once; told in its own audit log. `gone` when the link is
-- not good any more, or its address has come to be another person's or to have another password meanwhile; `taken` when
-- the slug is another's: the link stays good then.
CREATE OR REPLACE FUNCTION sign_up(
  p_link uuid, p_tenant uuid, p_slug text, p_families text[], p_user uuid, p_hash text,
  p_entry uuid, p_actor text, p_shown text
) RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_link record;
  v_user record;
BEGIN
  SELECT l.* INTO v_link FROM public.account_links l
  WHERE l.id = p_link AND l.kind = 'SIGN_UP' AND l.used_at IS NULL AND l.expires_at > clock_timestamp()
  FOR UPDATE;
  IF NOT FOUND THEN
    RETURN 'gone';
  END IF;
  SELECT * INTO v_user FROM settle_user(p_user, v_link.email, p_hash);
  IF v_user.user_id <> p_user OR v_user.password_hash IS DISTINCT FROM p_hash THEN
    RETURN 'gone';
  END IF;
  IF NOT create_tenant(
    p_tenant, p_slug, v_link.detail->>'name', v_link.detail->>'timezone', p_families, 'USER', p_shown
  ) THEN
    RETURN 'taken';
  END IF;
  INSERT INTO public.memberships (tenant_id, user_id, role) VALUES (p_tenant, p_user, 'OWNER');
  PERFORM record_operation(p_tenant, p_entry, p_actor, 'member.set', p_shown, '{"before": null, "after": {"role": "OWNER"}}');
  UPDATE public.account_links l SET used_at = clock_timestamp() WHERE l.id = p_link;
  RETURN 'made';
END $$;
REVOKE ALL ON FUNCTION sign_up(uuid, uuid, text, text[], uuid, text, uuid, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sign_up(uuid, uuid, text, text[], uuid, text, uuid, text, text) TO tenantry_app;

-- The password of the person whose open login this is, and no identity provider's.
CREATE OR REPLACE FUNCTION own_password(p_tenant uuid, p_login uuid) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT u.password_hash FROM public.login_sessions s JOIN public.users u ON u.id = s.user_id
  WHERE s.tenant_id = p_tenant AND s.id = p_login AND s.revoked_at IS NULL AND s.expires_at > clock_timestamp()
    AND s.provider IS NULL
$$;
REVOKE ALL ON FUNCTION own_password(uuid, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION own_password(uuid, uuid) TO tenantry_app;

-- Replaces the password of the person whose open login this is, and no identity provider's, if it is still the one that
-- was verified, and ends all of their other logins, in every tenant.
CREATE OR REPLACE FUNCTION change_password(p_tenant uuid, p_login uuid, p_before text, p_hash text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_user uuid;
BEGIN
  UPDATE public.users u SET password_hash = p_hash
  FROM public.login_sessions s
  WHERE s.tenant_id = p_tenant AND s.id = p_login AND s.revoked_at IS NULL AND s.expires_at > clock_timestamp()
    AND s.provider IS NULL AND u.id = s.user_id AND u.password_hash = p_before
  RETURNING u.id INTO v_user;
  UPDATE public.login_sessions s SET revoked_at = clock_timestamp()
  WHERE s.user_id = v_user AND s.revoked_at IS NULL AND NOT (s.tenant_id = p_tenant AND s.id = p_login);
  PERFORM tell_tenants_of(v_user, 'password.set', p_tenant);
  RETURN v_user IS NOT NULL;
END $$;
REVOKE ALL ON FUNCTION change_password(uuid, uuid, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION change_password(uuid, uuid, text, text) TO tenantry_app;

-- The tenants of the person whose open login this is; where an identity provider vouched for it, that login's alone.
CREATE OR REPLACE FUNCTION tenants_of(
  p_tenant uuid, p_login uuid,
  OUT tenant_id uuid, OUT slug text, OUT name text, OUT role text, OUT role_name text
) RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.id, t.slug, t.name, m.role, r.name
  FROM public.login_sessions s
  JOIN public.memberships m ON m.user_id = s.user_id AND (s.provider IS NULL OR m.tenant_id = s.tenant_id)
  JOIN public.tenants t ON t.id = m.tenant_id
  LEFT JOIN public.roles r ON r.tenant_id = m.tenant_id AND r.id = m.role_id
  WHERE s.tenant_id = p_tenant AND s.id = p_login AND s.revoked_at IS NULL AND s.expires_at > clock_timestamp()
  ORDER BY t.slug
$$;
REVOKE ALL ON FUNCTION tenants_of(uuid, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tenants_of(uuid, uuid) TO tenantry_app;

-- Deletes links whose time was over before p_before, whatever became of them: at most p_most. Returns how many.
CREATE OR REPLACE FUNCTION delete_ended_links(p_before timestamptz, p_most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_deleted int;
BEGIN
  DELETE FROM account_links WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM account_links WHERE expires_at < p_before LIMIT p_most FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS v_deleted = ROW_COUNT;
  RETURN v_deleted;
END $$;
REVOKE ALL ON FUNCTION delete_ended_links(timestamptz, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION delete_ended_links(timestamptz, int) TO tenantry_system;

-- Deletes logins that ended before p_before, by their time or by somebody: at most p_most. Returns how many.
CREATE OR REPLACE FUNCTION delete_ended_logins(p_before timestamptz, p_most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_deleted int;
BEGIN
  DELETE FROM login_sessions WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM login_sessions WHERE least(expires_at, revoked_at) < p_before LIMIT p_most
    FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS v_deleted = ROW_COUNT;
  RETURN v_deleted;
END $$;
REVOKE ALL ON FUNCTION delete_ended_logins(timestamptz, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION delete_ended_logins(timestamptz, int) TO tenantry_system;
