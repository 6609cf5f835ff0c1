-- Times of deliveries: the newest of one webhook are read without all that it ever had. delivery_id, by which the
-- table is sorted, grows with time within a webhook, so that each granule is of a short time. Every row of a delivery
-- has the same routed_at; updated_at differs, which FINAL takes care of (use_skip_indexes_if_final_exact_mode).
ALTER TABLE {database}.delivery_states ADD INDEX IF NOT EXISTS routed_at_minmax routed_at TYPE minmax GRANULARITY 1;
ALTER TABLE {database}.delivery_states ADD INDEX IF NOT EXISTS updated_at_minmax updated_at TYPE minmax GRANULARITY 1;
ALTER TABLE {database}.delivery_states MATERIALIZE INDEX routed_at_minmax;
ALTER TABLE {database}.delivery_states MATERIALIZE INDEX updated_at_minmax;
