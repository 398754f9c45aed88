-- The smallest UUIDv7 of a moment: its milliseconds, then zeros.
CREATE OR REPLACE FUNCTION first_id(p_at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
  SELECT (lpad(to_hex((extract(epoch FROM p_at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;
