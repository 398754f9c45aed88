-- Notes a broker message that no grant vouched for. At most p_cap rows are kept; the count goes on in the metrics.
CREATE OR REPLACE FUNCTION refuse_message(
  p_id uuid, p_reason text, p_queue text, p_worker text, p_digest text, p_cap int
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  INSERT INTO refused_messages (id, reason, queue, worker, digest)
  VALUES (p_id, left(p_reason, 100), left(p_queue, 200), left(p_worker, 200), left(p_digest, 64));
  DELETE FROM refused_messages WHERE id IN (SELECT id FROM refused_messages ORDER BY id DESC OFFSET p_cap);
END $$;
REVOKE ALL ON FUNCTION refuse_message(uuid, text, text, text, text, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION refuse_message(uuid, text, text, text, text, int) TO tenantry_app;
