package registry

import (
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
)

// sighting watches for the rows of one transaction among what the follower
// applies. A transaction is whole or not at all, so it tells for each of its
// writes whether it is in force, whatever the answer to its end was.
type sighting struct {
	awaited map[place]struct{} // the follower's goroutine alone takes out of it
	left    atomic.Int64       // how many are awaited still
}

type place struct {
	topic     string
	partition int32
	offset    int64
}

func placeOf(r *kgo.Record) place { return place{r.Topic, r.Partition, r.Offset} }

// newSighting returns what watches for records that Kafka has acknowledged and
// not yet committed; nil for none.
func newSighting(records []*kgo.Record) *sighting {
	if len(records) == 0 {
		return nil
	}
	s := &sighting{awaited: make(map[place]struct{}, len(records))}
	for _, r := range records {
		s.awaited[placeOf(r)] = struct{}{}
	}
	s.left.Store(int64(len(s.awaited)))
	return s
}

// saw notes that the follower has applied a record.
func (s *sighting) saw(r *kgo.Record) {
	if s == nil {
		return
	}
	if _, ok := s.awaited[placeOf(r)]; !ok {
		return
	}
	delete(s.awaited, placeOf(r))
	s.left.Add(-1)
}

func (s *sighting) complete() bool { return s.left.Load() == 0 }
