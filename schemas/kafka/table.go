package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// ErrTableLost says that the topic of webhooks was made anew: events routed by it
// would match nobody, and what waits for its webhooks would be discarded.
var ErrTableLost = errors.New("nothing was ever written to it, though there are deliveries: it was made anew, and its webhooks are lost; " +
	"write them again, or if that was meant any record (a tombstone of any key will do)")

// CheckTable is called before webhooks are read for the first time. A Follower
// notices by itself what becomes of them afterwards, and records that an operator deleted.
func CheckTable(ctx context.Context, cl *kgo.Client, t schemas.Topics) error {
	_, ends, err := Bounds(ctx, cl, t.Webhooks, t.Deliveries)
	if err != nil {
		return err
	}
	written := make(map[string]int64)
	for place, end := range ends {
		written[place.Topic] += end
	}
	if written[t.Webhooks] == 0 && written[t.Deliveries] > 0 {
		return fmt.Errorf("checking %s: %w", t.Webhooks, ErrTableLost)
	}
	return nil
}

// tombstoneRetention is for how long topics keep a tombstone at least: Kafka's
// default of a day where a broker does not say, for which it may want a right.
func tombstoneRetention(ctx context.Context, cl *kgo.Client, topics []string) time.Duration {
	const key = "delete.retention.ms"
	least := 24 * time.Hour
	described, err := kadm.NewClient(cl).DescribeTopicConfigs(ctx, topics...)
	if err != nil {
		return least
	}
	for _, d := range described {
		if ms, err := strconv.ParseInt(values(d)[key], 10, 64); err == nil && ms > 0 {
			least = min(least, time.Duration(ms)*time.Millisecond)
		}
	}
	return least
}
