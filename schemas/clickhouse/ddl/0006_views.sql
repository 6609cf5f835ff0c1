-- The supported interface for SQL, version 1: see README.md. A view may get columns; none goes, or changes its meaning:
-- what does so is a view _v2 beside it. NULL says that a thing is not known, or that there was none.
CREATE OR REPLACE VIEW {database}.outcomes_v1
(
    organization String COMMENT 'Organization whose webhook it is',
    account String COMMENT 'Account of the event; empty: none',
    webhook_id String COMMENT 'Webhook, wh_…',
    webhook_revision Int64 COMMENT 'Revision of the webhook that was in force',
    delivery_id String COMMENT 'Delivery, dlv_…; grows with time within a webhook',
    message_id String COMMENT 'What the target saw as webhook-id, msg_…',
    event_id String COMMENT 'Event; unique within its organization and the dedup window',
    event LowCardinality(String) COMMENT 'Name of the event, <service>.<method>',
    cause LowCardinality(String) COMMENT 'Why the delivery was made: event, ping, retry (by hand), replay',
    attempt UInt16 COMMENT 'Number of the attempt, from 1; of an outcome without one, how many were made before',
    status_code Nullable(UInt16) COMMENT 'Status of the answer; NULL: there was none to trust',
    result LowCardinality(String) COMMENT 'delivered, retry, dead, discarded or held',
    reason LowCardinality(String) COMMENT 'Why it was not delivered; empty: it was',
    url String COMMENT 'URL that was called',
    started_at DateTime64(3, 'UTC') COMMENT 'When the attempt, or the decision to make none, began, by the clock of the sender',
    duration_ms Nullable(Float32) COMMENT 'Whole attempt, in milliseconds; NULL: no request was made',
    dns_ms Nullable(Float32) COMMENT 'Of these, resolving the name; NULL: not needed, the connection was there',
    connect_ms Nullable(Float32) COMMENT 'Of these, connecting; NULL: likewise',
    tls_ms Nullable(Float32) COMMENT 'Of these, the handshake of TLS; NULL: likewise, or plain http',
    first_byte_ms Nullable(Float32) COMMENT 'Of these, from the request written to the first byte of the answer; NULL: none came',
    next_attempt_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When the next attempt is due; NULL: there is none',
    event_time Nullable(DateTime64(3, 'UTC')) COMMENT 'Time of the event, as its producer says',
    accepted_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When the event was accepted, by the clock of Kafka',
    routed_at DateTime64(3, 'UTC') COMMENT 'When the delivery was made, by the clock of the router',
    response_head String COMMENT 'Status line and headers of the answer, at most 16 KiB; kept for days (30 at first)',
    response_body String COMMENT 'First 16 KiB of the body of the answer, as they came; kept for days (30 at first)',
    response_bytes Int64 COMMENT 'Length of the whole body in bytes, as far as known',
    sender LowCardinality(String) COMMENT 'Instance of the sender that made the attempt',
    topic_id UUID COMMENT 'Id of the topic outcomes that holds the record',
    partition Int32 COMMENT 'Partition of the record',
    offset Int64 COMMENT 'Offset of the record',
    inserted_at DateTime('UTC') COMMENT 'When the row came into ClickHouse, by the clock of ClickHouse'
) AS SELECT
    organization, account, webhook_id, webhook_revision, delivery_id, message_id, event_id, event, cause,
    attempt, nullIf(status_code, 0) AS status_code, result, reason, url, started_at,
    nullIf(duration_ms, 0) AS duration_ms, nullIf(dns_ms, 0) AS dns_ms, nullIf(connect_ms, 0) AS connect_ms,
    nullIf(tls_ms, 0) AS tls_ms, nullIf(first_byte_ms, 0) AS first_byte_ms,
    nullIf(next_attempt_at, toDateTime64(0, 3, 'UTC')) AS next_attempt_at,
    nullIf(event_time, toDateTime64(0, 3, 'UTC')) AS event_time, nullIf(accepted_at, toDateTime64(0, 3, 'UTC')) AS accepted_at,
    routed_at, response_head, response_body, response_bytes, sender, topic_id, partition, offset, inserted_at
FROM {database}.outcomes;

CREATE OR REPLACE VIEW {database}.deliveries_v1
(
    organization String COMMENT 'Organization whose webhook it is',
    account String COMMENT 'Account of the event; empty: none',
    webhook_id String COMMENT 'Webhook, wh_…',
    delivery_id String COMMENT 'Delivery, dlv_…; grows with time within a webhook',
    message_id String COMMENT 'What the target sees as webhook-id, msg_…',
    event_id String COMMENT 'Event; unique within its organization and the dedup window',
    event LowCardinality(String) COMMENT 'Name of the event, <service>.<method>',
    cause LowCardinality(String) COMMENT 'Why the delivery was made: event, ping, retry (by hand), replay',
    state LowCardinality(String) COMMENT 'Latest result: pending, retry, held, or its end: delivered, dead, discarded',
    reason LowCardinality(String) COMMENT 'Why the latest result is what it is; empty: delivered or pending',
    attempts UInt16 COMMENT 'Attempts made',
    status_code Nullable(UInt16) COMMENT 'Status of the last answer; NULL: none to trust',
    event_time Nullable(DateTime64(3, 'UTC')) COMMENT 'Time of the event, as its producer says',
    accepted_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When the event was accepted, by the clock of Kafka',
    routed_at DateTime64(3, 'UTC') COMMENT 'When the delivery was made, by the clock of the router',
    updated_at DateTime64(3, 'UTC') COMMENT 'Time of the latest result, the end of its attempt; of a pending one routed_at',
    next_attempt_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When the next attempt is due; NULL: there is none',
    topic_id UUID COMMENT 'Id of the topic that holds the record of the latest state: deliveries while it is pending, else outcomes',
    partition Int32 COMMENT 'Partition of the record',
    offset Int64 COMMENT 'Offset of the record'
) AS SELECT
    organization, account, webhook_id, delivery_id, message_id, event_id, event, cause, state, reason, attempts,
    nullIf(status_code, 0) AS status_code,
    nullIf(event_time, toDateTime64(0, 3, 'UTC')) AS event_time, nullIf(accepted_at, toDateTime64(0, 3, 'UTC')) AS accepted_at,
    routed_at, updated_at, nullIf(next_attempt_at, toDateTime64(0, 3, 'UTC')) AS next_attempt_at, topic_id, partition, offset
FROM {database}.delivery_states FINAL
-- All rows of a delivery are in one month (routed_at), so that others need not be looked into.
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW {database}.events_v1
(
    organization String COMMENT 'Organization that it happened in',
    account String COMMENT 'Account; empty: none',
    event_id String COMMENT 'Event; unique within its organization and the dedup window',
    event LowCardinality(String) COMMENT 'Name of the event, <service>.<method>',
    cause LowCardinality(String) COMMENT 'event, or ping for a test event, which never was in the topic events',
    source LowCardinality(String) COMMENT 'Source, as CloudEvents has it',
    subject String COMMENT 'Subject, as CloudEvents has it; empty: none',
    event_time Nullable(DateTime64(3, 'UTC')) COMMENT 'Time of the event, as its producer says',
    accepted_at DateTime64(3, 'UTC') COMMENT 'When it was accepted, by the clock of Kafka',
    routed_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When it was routed, by the clock of the router; NULL: not known',
    body String COMMENT 'Body as the webhook contract has it, {"id","event","payload"?}; kept for days (30 at first)',
    body_bytes UInt32 COMMENT 'Length of body in bytes, also when it is no longer kept',
    matches Nullable(UInt32) COMMENT 'Number of webhooks that it was routed to; NULL: the record of the router had expired',
    copies UInt64 COMMENT 'How often the same event came again, and was not routed',
    topic_id UUID COMMENT 'Id of the topic that holds the record: events; of a ping deliveries',
    partition Int32 COMMENT 'Partition of the record',
    offset Int64 COMMENT 'Offset of the record',
    inserted_at DateTime('UTC') COMMENT 'When the row came into ClickHouse, by the clock of ClickHouse'
) AS SELECT
    l.organization AS organization, l.account AS account, l.event_id AS event_id, l.event AS event, l.cause AS cause,
    l.source AS source, l.subject AS subject, nullIf(l.event_time, toDateTime64(0, 3, 'UTC')) AS event_time,
    l.accepted_at AS accepted_at, nullIf(l.routed_at, toDateTime64(0, 3, 'UTC')) AS routed_at,
    l.body AS body, l.body_bytes AS body_bytes, l.matches AS matches, c.copies AS copies,
    l.topic_id AS topic_id, l.partition AS partition, l.offset AS offset, l.inserted_at AS inserted_at
FROM {database}.event_log AS l
LEFT JOIN
(
    SELECT organization, event_id, countIf(result = 'duplicate') AS copies
    FROM {database}.event_copies
    GROUP BY organization, event_id
) AS c ON l.organization = c.organization AND l.event_id = c.event_id;

CREATE OR REPLACE VIEW {database}.changes_v1
(
    organization String COMMENT 'Organization whose thing it is; empty: of all',
    at DateTime64(3, 'UTC') COMMENT 'When, by the clock of the service that made it',
    actor String COMMENT 'Id of the API key, admin for the bootstrap key, or the instance of a sender',
    action LowCardinality(String) COMMENT 'created, updated, deleted, revoked, disabled and the like',
    object LowCardinality(String) COMMENT 'Kind of thing: webhook, key, job and the like',
    object_id String COMMENT 'Id of the thing',
    request_id String COMMENT 'Id of the request: instance of its problem, if it failed',
    before String COMMENT 'The thing as the API showed it before, JSON; empty: there was none',
    after String COMMENT 'The thing as the API showed it afterwards, JSON; empty: there is none',
    error String COMMENT 'Why it was refused; empty: it was done',
    topic_id UUID COMMENT 'Id of the topic changes',
    partition Int32 COMMENT 'Partition of the record',
    offset Int64 COMMENT 'Offset of the record',
    inserted_at DateTime('UTC') COMMENT 'When the row came into ClickHouse, by the clock of ClickHouse'
) AS SELECT
    organization, at, actor, action, object, object_id, request_id, before, after, error, topic_id, partition, offset, inserted_at
FROM {database}.changes;

CREATE OR REPLACE VIEW {database}.webhooks_v1
(
    organization String COMMENT 'Organization that it is installed on',
    account String COMMENT 'Account that it is installed on; empty: the organization and all its accounts',
    webhook_id String COMMENT 'Webhook, wh_…',
    revision Int64 COMMENT 'Revision, from 1: a row each',
    generation Int64 COMMENT 'How often it has been enabled',
    active Bool COMMENT 'False while its owner has it disabled',
    deleted Bool COMMENT 'True in the last row of a webhook that is deleted',
    url String COMMENT 'URL that is called',
    events Array(LowCardinality(String)) COMMENT 'Patterns that it subscribes to',
    description String COMMENT 'Description by its owner',
    actor String COMMENT 'Who made this revision, as in changes_v1',
    created_at DateTime64(3, 'UTC') COMMENT 'When the webhook was created',
    changed_at DateTime64(3, 'UTC') COMMENT 'When this revision was made',
    topic_id UUID COMMENT 'Id of the topic changes',
    partition Int32 COMMENT 'Partition of the record',
    offset Int64 COMMENT 'Offset of the record',
    inserted_at DateTime('UTC') COMMENT 'When the row came into ClickHouse, by the clock of ClickHouse'
) AS SELECT
    organization, account, webhook_id, revision, generation, active, deleted, url, events, description, actor,
    created_at, changed_at, topic_id, partition, offset, inserted_at
FROM {database}.webhooks;
