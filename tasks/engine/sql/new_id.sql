-- A UUIDv7 of this moment, as `tenants/ids.py` makes them: a random one whose front is the time and whose version is 7.
CREATE OR REPLACE FUNCTION new_id() RETURNS uuid LANGUAGE sql VOLATILE AS $$
  SELECT encode(set_bit(set_bit(overlay(
    uuid_send(gen_random_uuid())
    PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6
  ), 52, 1), 53, 1), 'hex')::uuid
$$;
REVOKE ALL ON FUNCTION new_id() FROM PUBLIC;
