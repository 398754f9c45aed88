-- Notes broker messages that no grant vouched for: the count of each reason, and the latest 10,000 of the messages.
-- Both only grow under the caller's hands: what has been noted is not the app login's to take back.
CREATE OR REPLACE FUNCTION refuse_messages(
  p_reasons text[], p_counts int[], p_worker text, p_ids uuid[], p_each_reason text[], p_each_queue text[],
  p_each_digest text[]
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  INSERT INTO refused_counts AS c (reason, total)
  SELECT left(u.reason, 100), greatest(u.total, 0) FROM unnest(p_reasons, p_counts) AS u(reason, total)
  ON CONFLICT (reason) DO UPDATE SET total = c.total + excluded.total;
  INSERT INTO refused_messages (id, reason, queue, worker, digest)
  SELECT u.id, left(u.reason, 100), left(u.queue, 200), left(p_worker, 200), left(u.digest, 64)
  FROM unnest(p_ids, p_each_reason, p_each_queue, p_each_digest) AS u(id, reason, queue, digest);
  DELETE FROM refused_messages WHERE id IN (SELECT id FROM refused_messages ORDER BY id DESC OFFSET 10000);
END $$;
REVOKE ALL ON FUNCTION refuse_messages(text[], int[], text, uuid[], text[], text[], text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION refuse_messages(text[], int[], text, uuid[], text[], text[], text[]) TO tenantry_app;
