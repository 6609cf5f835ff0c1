package audit

import (
	"context"
	"math"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Stats are counts and latencies of a webhook's outcomes within a time.
type Stats struct {
	WebhookID string    `json:"webhook_id"`
	Since     time.Time `json:"since"`
	Until     time.Time `json:"until"`
	// Attempts counts requests made; an outcome without one is in Results only.
	Attempts int `json:"attempts"`
	// Results, Reasons and StatusCodes count outcomes, by what they say.
	Results     map[string]int `json:"results"`
	Reasons     map[string]int `json:"reasons"`
	StatusCodes map[string]int `json:"status_codes"`
	// AttemptMS is how long attempts took, FirstByteMS the wait for the answer's first
	// byte, DeliveryMS the time from an event's acceptance until it was delivered. Nil: there are none.
	AttemptMS   *Percentiles `json:"attempt_ms,omitempty"`
	FirstByteMS *Percentiles `json:"first_byte_ms,omitempty"`
	DeliveryMS  *Percentiles `json:"delivery_ms,omitempty"`
}

// Percentiles are of times in milliseconds, within some percent of the exact ones.
type Percentiles struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Stats implements Audit. Requests are told by their duration: an outcome without one has none.
func (c *ClickHouse) Stats(ctx context.Context, organization, webhookID string, since, until time.Time) (Stats, error) {
	s := Stats{
		WebhookID: webhookID, Since: since, Until: until,
		Results: map[string]int{}, Reasons: map[string]int{}, StatusCodes: map[string]int{},
	}
	const delivered = "result = 'delivered' AND accepted_at > toDateTime64(0, 3, 'UTC')"
	q := &query{
		name: "stats", from: "outcomes",
		columns: `countIf(duration_ms > 0),
			sumMap(map(toString(result), toUInt64(1))), sumMapIf(map(toString(reason), toUInt64(1)), reason != ''),
			sumMapIf(map(toString(status_code), toUInt64(1)), status_code > 0),
			quantilesTDigestIf(0.5, 0.9, 0.99)(duration_ms, duration_ms > 0), maxIf(duration_ms, duration_ms > 0),
			quantilesTDigestIf(0.5, 0.9, 0.99)(first_byte_ms, first_byte_ms > 0), maxIf(first_byte_ms, first_byte_ms > 0),
			quantilesTDigestIf(0.5, 0.9, 0.99)(toFloat32(greatest(dateDiff('millisecond', accepted_at, started_at), 0) + duration_ms), ` + delivered + `),
			toFloat32(maxIf(greatest(dateDiff('millisecond', accepted_at, started_at), 0) + duration_ms, ` + delivered + `))`,
	}
	q.and("organization = ?", organization)
	q.and("webhook_id = ?", webhookID)
	q.andTime("started_at >= ?", since)
	q.andTime("started_at < ?", until)
	err := c.ask(ctx, q, func(rows driver.Rows) error {
		var (
			attempts                   uint64
			results, reasons, statuses map[string]uint64
			attempt, first, delivery   []float32
			attemptMax, firstMax       float32
			deliveryMax                float32
		)
		if err := rows.Scan(&attempts, &results, &reasons, &statuses, &attempt, &attemptMax, &first, &firstMax, &delivery, &deliveryMax); err != nil {
			return err
		}
		s.Attempts = int(attempts)
		addCounts(s.Results, results)
		addCounts(s.Reasons, reasons)
		addCounts(s.StatusCodes, statuses)
		s.AttemptMS, s.FirstByteMS, s.DeliveryMS = percentiles(attempt, attemptMax), percentiles(first, firstMax), percentiles(delivery, deliveryMax)
		return nil
	})
	return s, err
}

func addCounts(to map[string]int, counts map[string]uint64) {
	for name, n := range counts {
		to[name] = int(n) //nolint:gosec // a count of rows
	}
}

// percentiles are nil where there were no values: ClickHouse says NaN then.
func percentiles(p []float32, most float32) *Percentiles {
	if len(p) != 3 || math.IsNaN(float64(p[0])) {
		return nil
	}
	return &Percentiles{ms(p[0]), ms(p[1]), ms(p[2]), ms(most)}
}

// ms rounds to microseconds: what else a 32-bit fraction becomes as 64 bits was never measured.
func ms(value float32) float64 { return math.Round(float64(value)*1000) / 1000 }
