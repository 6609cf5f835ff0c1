-- Every admin action, also those that were refused (error says why). before and after hold no secret.
CREATE TABLE IF NOT EXISTS {database}.changes
(
    organization String CODEC(ZSTD(1)),
    at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    actor String CODEC(ZSTD(1)),
    action LowCardinality(String),
    object LowCardinality(String),
    object_id String CODEC(ZSTD(1)),
    request_id String CODEC(ZSTD(1)),
    before String CODEC(ZSTD(3)),
    after String CODEC(ZSTD(3)),
    error String CODEC(ZSTD(1)),
    topic_id UUID CODEC(ZSTD(1)),
    partition Int32 CODEC(ZSTD(1)),
    offset Int64 CODEC(Delta(8), ZSTD(1)),
    inserted_at DateTime('UTC') DEFAULT now() + throwIf(nowInBlock64(3) > insert_by, 'insert arrived after its deadline') CODEC(Delta(4), ZSTD(1)),
    insert_by DateTime64(3, 'UTC') EPHEMERAL toDateTime64('2200-01-01 00:00:00', 3, 'UTC'),
    PROJECTION places (SELECT topic_id, partition, offset ORDER BY topic_id, partition, offset)
)
ENGINE = MergeTree
PARTITION BY toYear(inserted_at)
ORDER BY (organization, object, object_id, at)
SETTINGS non_replicated_deduplication_window = 10000;

-- Every revision of every webhook; the last one of a deleted webhook has deleted = true.
CREATE TABLE IF NOT EXISTS {database}.webhooks
(
    organization String CODEC(ZSTD(1)),
    account String CODEC(ZSTD(1)),
    webhook_id String CODEC(ZSTD(1)),
    revision Int64 CODEC(ZSTD(1)),
    generation Int64 CODEC(ZSTD(1)),
    active Bool,
    deleted Bool,
    url String CODEC(ZSTD(1)),
    events Array(LowCardinality(String)),
    description String CODEC(ZSTD(1)),
    actor String CODEC(ZSTD(1)),
    created_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    changed_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    topic_id UUID CODEC(ZSTD(1)),
    partition Int32 CODEC(ZSTD(1)),
    offset Int64 CODEC(Delta(8), ZSTD(1)),
    inserted_at DateTime('UTC') DEFAULT now() + throwIf(nowInBlock64(3) > insert_by, 'insert arrived after its deadline') CODEC(Delta(4), ZSTD(1)),
    insert_by DateTime64(3, 'UTC') EPHEMERAL toDateTime64('2200-01-01 00:00:00', 3, 'UTC'),
    PROJECTION places (SELECT topic_id, partition, offset ORDER BY topic_id, partition, offset)
)
ENGINE = MergeTree
PARTITION BY toYear(inserted_at)
ORDER BY (organization, webhook_id, changed_at)
SETTINGS non_replicated_deduplication_window = 10000;
