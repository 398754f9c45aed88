-- Monthly partitions (UTC) of orders and their lines from p_from to p_to; returns how many months were new.
-- Rows that waited in the default partition move in. Built aside and attached, so that readers are hardly held up;
-- call it in a short transaction of its own all the same, for its locks last until the commit.
CREATE OR REPLACE FUNCTION ensure_order_partitions(p_from timestamptz, p_to timestamptz) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '3s' AS $$
DECLARE
  v_month timestamptz := date_trunc('month', p_from, 'UTC');
  v_next timestamptz;
  v_suffix text;
  v_table text;
  v_columns text;
  v_made int := 0;
BEGIN
  IF p_from < '1990-01-01T00:00Z' OR p_to > now() + interval '400 days' OR p_to < p_from THEN
    RAISE EXCEPTION 'orders between % and %: not a range that orders are placed in', p_from, p_to
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  WHILE v_month <= p_to LOOP
    v_next := (v_month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    v_suffix := to_char(v_month AT TIME ZONE 'UTC', '"_p"YYYYMM');
    IF to_regclass('sales_orders' || v_suffix) IS NULL THEN
      PERFORM pg_advisory_xact_lock(hashtext('tenantry.order_partitions'));
    END IF;
    IF to_regclass('sales_orders' || v_suffix) IS NULL THEN
      -- No row may arrive between those that are copied and those that are deleted. Attaching needs this lock in any
      -- case: to take a lesser one first could end in a deadlock with who reads and then writes.
      LOCK TABLE sales_orders_default, sales_order_lines_default IN ACCESS EXCLUSIVE MODE;
      FOREACH v_table IN ARRAY ARRAY['sales_orders', 'sales_order_lines'] LOOP
        EXECUTE format('CREATE TABLE public.%I (LIKE %I INCLUDING DEFAULTS INCLUDING GENERATED)',
                       v_table || v_suffix, v_table);
        SELECT string_agg(attname, ', ' ORDER BY attnum) INTO v_columns FROM pg_attribute
        WHERE attrelid = v_table::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
        EXECUTE format('INSERT INTO %I (%s) SELECT %s FROM %I WHERE placed_at >= %L AND placed_at < %L',
                       v_table || v_suffix, v_columns, v_columns, v_table || '_default', v_month, v_next);
      END LOOP;
      EXECUTE format('DELETE FROM sales_order_lines_default WHERE placed_at >= %L AND placed_at < %L', v_month, v_next);
      EXECUTE format('DELETE FROM sales_orders_default WHERE placed_at >= %L AND placed_at < %L', v_month, v_next);
      FOREACH v_table IN ARRAY ARRAY['sales_orders', 'sales_order_lines'] LOOP
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                       v_table, v_table || v_suffix, v_month, v_next);
      END LOOP;
      v_made := v_made + 1;
    END IF;
    v_month := v_next;
  END LOOP;
  RETURN v_made;
END $$;
REVOKE ALL ON FUNCTION ensure_order_partitions(timestamptz, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ensure_order_partitions(timestamptz, timestamptz) TO tenantry_app, tenantry_system;

-- Drops the months that ended before p_before and hold no order of any tenant; returns how many.
CREATE OR REPLACE FUNCTION drop_empty_order_partitions(p_before timestamptz) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '3s' AS $$
DECLARE
  v_part record;
  v_full boolean;
  v_dropped int := 0;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('tenantry.order_partitions'));
  FOR v_part IN
    SELECT 'sales_orders_p' || month AS orders, 'sales_order_lines_p' || month AS lines
    FROM (SELECT substring(c.relname FROM '_p([0-9]{6})$') AS month FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
          WHERE i.inhparent = 'sales_orders'::regclass) parts
    WHERE (to_date(month, 'YYYYMM') + interval '1 month') AT TIME ZONE 'UTC' <= least(p_before, now())
    ORDER BY month
  LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM %I)', v_part.orders) INTO v_full;
    CONTINUE WHEN v_full;
    EXECUTE format('LOCK TABLE %I, %I IN ACCESS EXCLUSIVE MODE', v_part.orders, v_part.lines);
    EXECUTE format('SELECT EXISTS (SELECT FROM %I)', v_part.orders) INTO v_full;
    CONTINUE WHEN v_full;
    EXECUTE format('ALTER TABLE sales_order_lines DETACH PARTITION %I', v_part.lines);
    EXECUTE format('ALTER TABLE sales_orders DETACH PARTITION %I', v_part.orders);
    EXECUTE format('DROP TABLE %I, %I', v_part.lines, v_part.orders);
    v_dropped := v_dropped + 1;
  END LOOP;
  RETURN v_dropped;
END $$;
REVOKE ALL ON FUNCTION drop_empty_order_partitions(timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION drop_empty_order_partitions(timestamptz) TO tenantry_system;
