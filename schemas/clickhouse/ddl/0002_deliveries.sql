-- The states of deliveries: a row for the delivery itself (version 0) and one for each of its outcomes (version: the
-- outcome's offset + 1; all outcomes of a delivery are in one partition). The row with the highest version is the
-- latest state, so inserting a row again changes nothing, and it does not matter which of two topics is read first.
CREATE TABLE IF NOT EXISTS {database}.delivery_states
(
    organization String CODEC(ZSTD(1)),
    account String CODEC(ZSTD(1)),
    webhook_id String CODEC(ZSTD(1)),
    delivery_id String CODEC(ZSTD(1)),
    message_id String CODEC(ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    event LowCardinality(String),
    cause LowCardinality(String),
    state LowCardinality(String),
    reason LowCardinality(String),
    attempts UInt16 CODEC(ZSTD(1)),
    status_code UInt16 CODEC(ZSTD(1)),
    event_time DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    accepted_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    routed_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    updated_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    next_attempt_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    topic_id UUID CODEC(ZSTD(1)),
    partition Int32 CODEC(ZSTD(1)),
    offset Int64 CODEC(Delta(8), ZSTD(1)),
    version UInt64 CODEC(ZSTD(1)),
    inserted_at DateTime('UTC') DEFAULT now() CODEC(Delta(4), ZSTD(1)),
    INDEX delivery_id_bloom delivery_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX event_id_bloom event_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(routed_at)
ORDER BY (organization, webhook_id, delivery_id)
TTL inserted_at + toIntervalYear(2)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

-- The latest state of each delivery: pending, retry, delivered, dead, discarded or held. delivery_id grows with time
-- within a webhook. topic_id, partition and offset are those of the record the state comes from.
CREATE VIEW IF NOT EXISTS {database}.deliveries AS
SELECT
    organization, account, webhook_id, delivery_id, message_id, event_id, event, cause,
    state, reason, attempts, status_code,
    event_time, accepted_at, routed_at, updated_at,
    if(next_attempt_at = toDateTime64(0, 3, 'UTC'), NULL, next_attempt_at) AS next_attempt_at,
    topic_id, partition, offset
FROM {database}.delivery_states FINAL;
