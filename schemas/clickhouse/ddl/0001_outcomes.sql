-- One row per outcome. insert_by is the writer's deadline by this server's clock: a block that arrives later (from a
-- writer that was stopped, or through a slow network) is refused whole, so whoever looks after the deadline sees all
-- that will ever come. Rows fall into months by inserted_at, which is one value per insert: an insert is one part.
CREATE TABLE IF NOT EXISTS {database}.outcomes
(
    organization String CODEC(ZSTD(1)),
    account String CODEC(ZSTD(1)),
    webhook_id String CODEC(ZSTD(1)),
    webhook_revision Int64 CODEC(ZSTD(1)),
    delivery_id String CODEC(ZSTD(1)),
    message_id String CODEC(ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    event LowCardinality(String),
    cause LowCardinality(String),
    attempt UInt16 CODEC(ZSTD(1)),
    status_code UInt16 CODEC(ZSTD(1)),
    result LowCardinality(String),
    reason LowCardinality(String),
    url String CODEC(ZSTD(1)),
    started_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    duration_ms Float32 CODEC(ZSTD(1)),
    dns_ms Float32 CODEC(ZSTD(1)),
    connect_ms Float32 CODEC(ZSTD(1)),
    tls_ms Float32 CODEC(ZSTD(1)),
    first_byte_ms Float32 CODEC(ZSTD(1)),
    next_attempt_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    event_time DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    accepted_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    routed_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    response_head String CODEC(ZSTD(3)) TTL inserted_at + toIntervalDay(30),
    response_body String CODEC(ZSTD(3)) TTL inserted_at + toIntervalDay(30),
    response_bytes Int64 CODEC(ZSTD(1)),
    sender LowCardinality(String),
    topic_id UUID CODEC(ZSTD(1)),
    partition Int32 CODEC(ZSTD(1)),
    offset Int64 CODEC(Delta(8), ZSTD(1)),
    inserted_at DateTime('UTC') DEFAULT now() + throwIf(nowInBlock64(3) > insert_by, 'insert arrived after its deadline') CODEC(Delta(4), ZSTD(1)),
    insert_by DateTime64(3, 'UTC') EPHEMERAL toDateTime64('2200-01-01 00:00:00', 3, 'UTC'),
    INDEX delivery_id_bloom delivery_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX event_id_bloom event_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX started_at_minmax started_at TYPE minmax GRANULARITY 4,
    PROJECTION places (SELECT topic_id, partition, offset ORDER BY topic_id, partition, offset)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(inserted_at)
ORDER BY (organization, webhook_id, started_at)
TTL inserted_at + toIntervalYear(2)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;
