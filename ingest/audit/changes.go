package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"github.com/postrider/postrider/schemas"
)

// Change is who changed what, or tried to, as the API shows it.
type Change struct {
	schemas.Change

	place string
}

// Place is where the change stands in a list.
func (c *Change) Place() Place { return Place{c.At, c.place} }

// ChangeFilter says which changes are meant; what is empty does not narrow it.
type ChangeFilter struct {
	Organization, Actor, Action, Object, ObjectID string
	// Failed leaves what was refused, or what was done.
	Failed *bool
	// Since and Until bound the time of the change: from Since on, and before Until.
	Since, Until time.Time
}

func changesQuery(name, rest string, f ChangeFilter) *query {
	q := &query{
		name: name, from: "changes", rest: rest,
		columns: `at, actor, toString(action), toString(object), object_id, organization, request_id, before, after, error,
	topic_id, partition, offset`,
	}
	q.andText("organization", f.Organization)
	q.andText("actor", f.Actor)
	q.andText("action", f.Action)
	q.andText("object", f.Object)
	q.andText("object_id", f.ObjectID)
	if f.Failed != nil {
		q.and("(error != '') = ?", *f.Failed)
	}
	q.andTime("at >= ?", f.Since)
	q.andTime("at < ?", f.Until)
	return q
}

func scanChange(rows driver.Rows, c *Change) error {
	var (
		before, after string
		topic         uuid.UUID
		at            schemas.DeliveryID
	)
	err := rows.Scan(&c.At, &c.Actor, &c.Action, &c.Object, &c.ObjectID, &c.Organization, &c.RequestID, &before, &after, &c.Error,
		&topic, &at.Partition, &at.Offset)
	if err != nil {
		return err
	}
	c.Before, c.After = document(before), document(after)
	at.Topic = topic
	c.place = at.String()
	return nil
}

// document is a JSON text, nil where it is none: written past the API, it must not break an answer.
func document(text string) json.RawMessage {
	if !json.Valid([]byte(text)) {
		return nil
	}
	return json.RawMessage(text)
}

// Changes implements Audit.
func (c *ClickHouse) Changes(ctx context.Context, f ChangeFilter, after Place, limit int) ([]Change, error) {
	q := changesQuery("changes", fmt.Sprintf("ORDER BY at DESC, topic_id DESC, partition DESC, offset DESC LIMIT %d", limit), f)
	q.behind("at", after)
	return list(ctx, c, q, scanChange)
}

// ExportChanges implements Audit.
func (c *ClickHouse) ExportChanges(ctx context.Context, f ChangeFilter) (Rows[Change], error) {
	return export(ctx, c, func(after *Change) *query {
		q := changesQuery("changes_export", "ORDER BY organization, object, object_id, at, topic_id, partition, offset", f)
		if after != nil {
			at := placeOf(after.place)
			q.and("(organization, object, object_id, at, topic_id, partition, offset) >"+
				" (?, ?, ?, fromUnixTimestamp64Milli(?, 'UTC'), toUUID(?), toInt32(?), toInt64(?))",
				after.Organization, after.Object, after.ObjectID, after.At.UnixMilli(), uuid.UUID(at.Topic).String(), at.Partition, at.Offset)
		}
		return q
	}, scanChange)
}
