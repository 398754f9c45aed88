-- Weekly partitions of a run's tables, by the time inside the UUIDv7, from last week to p_ahead days ahead.
CREATE OR REPLACE FUNCTION ensure_partitions(p_ahead int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_table text;
  v_week timestamptz := date_trunc('week', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - interval '7 days';
  v_name text;
  v_column text;
  v_made int := 0;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('tenantry.ensure_partitions'));
  WHILE v_week <= now() + make_interval(days => p_ahead) LOOP
    FOREACH v_table IN ARRAY ARRAY['runs', 'run_events', 'run_steps', 'run_progress'] LOOP
      v_name := v_table || to_char(v_week AT TIME ZONE 'UTC', '"_p"YYYYMMDD');
      IF to_regclass(v_name) IS NULL THEN
        BEGIN
          EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', v_name, v_table,
                         first_id(v_week), first_id(v_week + interval '7 days'));
        EXCEPTION WHEN check_violation THEN
          -- Rows of that week wait in the default partition, for a clock was ahead or no dispatcher ran: they move in.
          EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', v_table || '_default');
          EXECUTE format('CREATE TABLE public.%I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', v_name, v_table);
          v_column := CASE v_table WHEN 'runs' THEN 'id' ELSE 'run_id' END;
          EXECUTE format('WITH moved AS (DELETE FROM %I WHERE %I >= %L AND %I < %L RETURNING *) INSERT INTO %I SELECT * FROM moved',
                         v_table || '_default', v_column, first_id(v_week), v_column, first_id(v_week + interval '7 days'),
                         v_name);
          EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', v_table, v_name,
                         first_id(v_week), first_id(v_week + interval '7 days'));
        END;
        v_made := v_made + 1;
      END IF;
    END LOOP;
    v_week := v_week + interval '7 days';
  END LOOP;
  RETURN v_made;
END $$;
REVOKE ALL ON FUNCTION ensure_partitions(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ensure_partitions(int) TO tenantry_system;

-- Drops the weeks that ended before p_before, hold no unfinished run, and whose runs therefore nobody waits for.
CREATE OR REPLACE FUNCTION drop_ended_partitions(p_before timestamptz) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  v_part record;
  v_open boolean;
  v_dropped int := 0;
BEGIN
  FOR v_part IN
    SELECT c.relname, substring(c.relname FROM '_p([0-9]{8})$') AS week
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'runs'::regclass AND c.relname ~ '_p[0-9]{8}$'
  LOOP
    CONTINUE WHEN (to_date(v_part.week, 'YYYYMMDD') + 7)::timestamp AT TIME ZONE 'UTC' > least(p_before, now());
    EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I WHERE state NOT IN (''SUCCEEDED'', ''FAILED'', ''TIMED_OUT'', ''CANCELLED''))',
                   v_part.relname) INTO v_open;
    CONTINUE WHEN v_open;
    EXECUTE format('DROP TABLE IF EXISTS %I, %I, %I, %I', v_part.relname, 'run_events_p' || v_part.week,
                   'run_steps_p' || v_part.week, 'run_progress_p' || v_part.week);
    v_dropped := v_dropped + 1;
  END LOOP;
  RETURN v_dropped;
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
