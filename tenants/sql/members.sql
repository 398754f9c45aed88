-- What a membership's end does to its person, however it ends: by leaving, or with the tenant. Who is a member nowhere
-- any more is forgotten, address and password. Whoever makes a person a member holds the lock on that person: so one
-- waits for the other, and looks again afterwards, in a statement of its own, whether there is another membership.
-- The lock comes first: who resets a password takes it before the logins, which go with the membership.
CREATE OR REPLACE FUNCTION lock_person() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  PERFORM FROM users u WHERE u.id = OLD.user_id FOR UPDATE;
  RETURN OLD;
END $$;
REVOKE ALL ON FUNCTION lock_person() FROM PUBLIC;

CREATE OR REPLACE FUNCTION forget_person() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  DELETE FROM users u WHERE u.id = OLD.user_id AND NOT EXISTS (SELECT FROM memberships m WHERE m.user_id = u.id);
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION forget_person() FROM PUBLIC;
