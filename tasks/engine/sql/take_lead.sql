-- Takes or keeps the leadership of a shard. Returns its epoch, or NULL while another holds it.
CREATE OR REPLACE FUNCTION take_lead(p_shard text, p_holder text, p_term interval) RETURNS bigint LANGUAGE sql AS $$
  INSERT INTO dispatcher_leader AS d (shard, epoch, holder, expires_at)
  VALUES (p_shard, 1, p_holder, clock_timestamp() + p_term)
  ON CONFLICT (shard) DO UPDATE SET
    epoch = d.epoch + CASE WHEN d.holder = p_holder THEN 0 ELSE 1 END,
    holder = p_holder,
    expires_at = clock_timestamp() + p_term
    WHERE d.holder = p_holder OR d.expires_at <= clock_timestamp()
  RETURNING epoch
$$;
REVOKE ALL ON FUNCTION take_lead(text, text, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION take_lead(text, text, interval) TO tenantry_system;

-- Gives the leadership up, so that another need not wait for its end.
CREATE OR REPLACE FUNCTION resign(p_shard text, p_holder text) RETURNS void LANGUAGE sql AS $$
  UPDATE dispatcher_leader SET expires_at = clock_timestamp() WHERE shard = p_shard AND holder = p_holder
$$;
REVOKE ALL ON FUNCTION resign(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION resign(text, text) TO tenantry_system;

-- Refuses what a dispatcher does under an epoch that is over.
--   TN011 not the leader
CREATE OR REPLACE FUNCTION check_leader(p_shard text, p_epoch bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM dispatcher_leader
  WHERE shard = p_shard AND epoch = p_epoch AND expires_at > clock_timestamp() FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'not the leader' USING ERRCODE = 'TN011';
  END IF;
END $$;
REVOKE ALL ON FUNCTION check_leader(text, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION check_leader(text, bigint) TO tenantry_system;
