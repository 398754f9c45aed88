-- Weekly partitions of a run's tables, by the time inside the UUIDv7, from p_ahead days ahead back to last week: at
-- most p_most of them, all where it is NULL. Returns how many were made. Each is built aside and attached, which needs
-- no lock that a run's work would wait for but one on the default partition: that is given up where others hold it.
-- Rows that wait there, for a clock was ahead or no dispatcher ran, move in; the latest week comes first, so that one
-- with many of them keeps none of those ahead from being made.
--   55P03 somebody holds the default partition, or makes or drops partitions too: try again later
CREATE OR REPLACE FUNCTION ensure_partitions(p_ahead int, p_most int DEFAULT NULL) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET timezone = 'UTC' SET lock_timeout = '50ms' AS $$
DECLARE
  v_table text;
  v_last timestamptz := date_trunc('week', now()) - interval '7 days';
  v_week timestamptz := date_trunc('week', now() + make_interval(days => p_ahead));
  v_first uuid;
  v_next uuid;
  v_name text;
  v_column text;
  v_made int := 0;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('tenantry.partitions'));
  WHILE v_week >= v_last LOOP
    v_first := first_id(v_week);
    v_next := first_id(v_week + interval '7 days');
    FOREACH v_table IN ARRAY ARRAY['runs', 'run_events', 'run_steps', 'run_progress'] LOOP
      v_name := v_table || to_char(v_week, '"_p"YYYYMMDD');
      CONTINUE WHEN to_regclass(v_name) IS NOT NULL;
      IF v_made >= p_most THEN
        RETURN v_made;
      END IF;
      v_column := CASE v_table WHEN 'runs' THEN 'id' ELSE 'run_id' END;
      EXECUTE format('CREATE TABLE public.%I (LIKE %I INCLUDING ALL)', v_name, v_table);
      -- Attaching takes this lock in any case, to look for rows of the week; none may arrive while they move.
      EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', v_table || '_default');
      EXECUTE format('WITH moved AS (DELETE FROM %I WHERE %I >= %L AND %I < %L RETURNING *)'
                     ' INSERT INTO %I SELECT * FROM moved',
                     v_table || '_default', v_column, v_first, v_column, v_next, v_name);
      EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                     v_table, v_name, v_first, v_next);
      v_made := v_made + 1;
    END LOOP;
    v_week := v_week - interval '7 days';
  END LOOP;
  RETURN v_made;
END $$;
REVOKE ALL ON FUNCTION ensure_partitions(int, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ensure_partitions(int, int) TO tenantry_system;

-- Drops one partition of a week in which every run ended before p_before; returns how many: none where none is left. A
-- single run that is open, or has ended since, keeps its week. What belongs to the runs of a week goes after them.
-- Dropping needs a lock that everybody would wait behind: it is given up at once where others hold one.
--   55P03 somebody is at work on the table, or makes or drops partitions too: try again later
CREATE OR REPLACE FUNCTION drop_ended_partitions(p_before timestamptz) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET timezone = 'UTC' SET lock_timeout = '50ms' AS $$
DECLARE
  v_part record;
  v_kept boolean;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('tenantry.partitions'));
  FOR v_part IN
    SELECT c.relname AS name, i.inhparent = 'runs'::regclass AS of_runs,
           substring(c.relname FROM '_p([0-9]{8})$') AS week
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent IN ('runs'::regclass, 'run_events'::regclass, 'run_steps'::regclass, 'run_progress'::regclass)
      AND c.relname ~ '_p[0-9]{8}$'
    ORDER BY of_runs, week -- Only the runs have to be read, which may take long.
  LOOP
    CONTINUE WHEN to_date(v_part.week, 'YYYYMMDD') + 7 > least(p_before, now());
    IF v_part.of_runs THEN
      EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE (finished_at < %L) IS NOT TRUE)', v_part.name, p_before)
        INTO v_kept;
    ELSE
      v_kept := to_regclass('runs_p' || v_part.week) IS NOT NULL;
    END IF;
    IF NOT v_kept THEN
      EXECUTE format('DROP TABLE %I', v_part.name);
      RETURN 1;
    END IF;
  END LOOP;
  RETURN 0;
END $$;
REVOKE ALL ON FUNCTION drop_ended_partitions(timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION drop_ended_partitions(timestamptz) TO tenantry_system;

-- Deletes a tenant's finished runs that were accepted before p_before. For the app login: only the tenant it stands in.
CREATE OR REPLACE FUNCTION prune_runs(p_tenant uuid, p_before timestamptz) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_ids uuid[];
BEGIN
  IF session_user = 'tenantry_app' AND p_tenant IS DISTINCT FROM nullif(current_setting('app.tenant_id', true), '')::uuid
  THEN
    RAISE EXCEPTION 'not this tenant' USING ERRCODE = 'insufficient_privilege';
  END IF;
  WITH gone AS (
    DELETE FROM runs WHERE tenant_id = p_tenant AND id < first_id(p_before)
      AND state IN ('SUCCEEDED', 'FAILED', 'TIMED_OUT', 'CANCELLED') RETURNING id
  ) SELECT array_agg(id) INTO v_ids FROM gone;
  DELETE FROM run_events WHERE tenant_id = p_tenant AND run_id = ANY (v_ids);
  DELETE FROM run_steps WHERE tenant_id = p_tenant AND run_id = ANY (v_ids);
  DELETE FROM run_progress WHERE tenant_id = p_tenant AND run_id = ANY (v_ids);
  RETURN coalesce(cardinality(v_ids), 0);
END $$;
REVOKE ALL ON FUNCTION prune_runs(uuid, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION prune_runs(uuid, timestamptz) TO tenantry_app;
