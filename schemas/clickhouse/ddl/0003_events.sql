-- One row per original event, its place that in events (for pings and the like, which never were in events, that in
-- deliveries). body is the webhook contract's, whatever format targets get. matches is the number of webhooks it was
-- routed to; NULL says that the router's record of it had expired before it was read. insert_by as in outcomes.
CREATE TABLE IF NOT EXISTS {database}.event_log
(
    organization String CODEC(ZSTD(1)),
    account String CODEC(ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    event LowCardinality(String),
    cause LowCardinality(String),
    source LowCardinality(String),
    subject String CODEC(ZSTD(1)),
    event_time DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    accepted_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    routed_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    body String CODEC(ZSTD(3)) TTL inserted_at + toIntervalDay(30),
    body_bytes UInt32 CODEC(ZSTD(1)),
    matches Nullable(UInt32) CODEC(ZSTD(1)),
    topic_id UUID CODEC(ZSTD(1)),
    partition Int32 CODEC(ZSTD(1)),
    offset Int64 CODEC(Delta(8), ZSTD(1)),
    inserted_at DateTime('UTC') DEFAULT now() + throwIf(nowInBlock64(3) > insert_by, 'insert arrived after its deadline') CODEC(Delta(4), ZSTD(1)),
    insert_by DateTime64(3, 'UTC') EPHEMERAL toDateTime64('2200-01-01 00:00:00', 3, 'UTC'),
    INDEX event_id_bloom event_id TYPE bloom_filter(0.01) GRANULARITY 1,
    PROJECTION places (SELECT topic_id, partition, offset ORDER BY topic_id, partition, offset)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(inserted_at)
ORDER BY (organization, accepted_at)
TTL inserted_at + toIntervalYear(2)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

-- One row per event that was sent again (duplicate), or whose id another event has used (rejected).
CREATE TABLE IF NOT EXISTS {database}.event_copies
(
    organization String CODEC(ZSTD(1)),
    account String CODEC(ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    event LowCardinality(String),
    result LowCardinality(String),
    event_time DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    accepted_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    routed_at DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    topic_id UUID CODEC(ZSTD(1)),
    partition Int32 CODEC(ZSTD(1)),
    offset Int64 CODEC(Delta(8), ZSTD(1)),
    inserted_at DateTime('UTC') DEFAULT now() + throwIf(nowInBlock64(3) > insert_by, 'insert arrived after its deadline') CODEC(Delta(4), ZSTD(1)),
    insert_by DateTime64(3, 'UTC') EPHEMERAL toDateTime64('2200-01-01 00:00:00', 3, 'UTC'),
    PROJECTION places (SELECT topic_id, partition, offset ORDER BY topic_id, partition, offset)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(inserted_at)
ORDER BY (organization, accepted_at)
TTL inserted_at + toIntervalYear(2)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

-- Each event with its body, the number of webhooks it was routed to, and how often it came again.
CREATE VIEW IF NOT EXISTS {database}.events AS
SELECT
    l.organization AS organization, l.account AS account, l.event_id AS event_id, l.event AS event, l.cause AS cause,
    l.source AS source, l.subject AS subject,
    l.event_time AS event_time, l.accepted_at AS accepted_at, l.routed_at AS routed_at,
    l.body AS body, l.body_bytes AS body_bytes, l.matches AS matches, c.copies AS copies,
    l.topic_id AS topic_id, l.partition AS partition, l.offset AS offset
FROM {database}.event_log AS l
LEFT JOIN
(
    SELECT organization, event_id, countIf(result = 'duplicate') AS copies
    FROM {database}.event_copies
    GROUP BY organization, event_id
) AS c ON l.organization = c.organization AND l.event_id = c.event_id;
