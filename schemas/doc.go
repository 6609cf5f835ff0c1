// Package schemas is the contract between Postrider's services: the records that
// cross Kafka with their codecs, the topics they live in, the rules by which
// events, webhooks and targets are judged, and the descriptions of all this for
// other programs (JSON Schemas, OpenAPI, golden examples).
//
// Decisions here are pure functions on values: nothing in this package opens a
// connection or starts a goroutine. Its rooms do: kafka (clients, topics,
// followers), clickhouse (the audit's tables) and process (what a service
// promises its operator).
package schemas
