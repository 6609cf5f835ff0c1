package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/schemas"
)

// refusal is a row that ClickHouse will not take, whatever state it is in.
type refusal struct {
	place
	err error
}

// refusesRow reports whether an error is about what is in a row, as a constraint
// that it violates, and not about the state that the server is in. The codes are
// those of ClickHouse's ErrorCodes.cpp.
func refusesRow(err error) bool {
	var exception *ch.Exception
	return errors.As(err, &exception) && slices.Contains([]int32{
		53,  // TYPE_MISMATCH
		69,  // ARGUMENT_OUT_OF_BOUND
		117, // INCORRECT_DATA
		131, // TOO_LARGE_STRING_SIZE
		321, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
		349, // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
		469, // VIOLATED_CONSTRAINT
		691, // UNKNOWN_ELEMENT_OF_ENUM
	}, exception.Code)
}

// insertApart inserts rows that were refused together by halves, and halves of
// those, until the refused ones stand alone: one bad row stops no other. What went in
// is found by its offsets by whoever looks, so a crash in between doubles nothing.
func (s *store) insertApart(ctx context.Context, t table, b bounds, of rows, deadline time.Time) (refused []refusal, err error) {
	places := t.places(&of)
	if len(places) == 0 {
		return nil, nil
	}
	part := &block{bounds: bounds{places[0].topic, b.partition, places[0].offset, places[len(places)-1].offset + 1}, rows: of}
	err = s.insert(ctx, t, []*block{part}, deadline)
	if !refusesRow(err) {
		return nil, err
	}
	if len(places) == 1 {
		return []refusal{{places[0], fmt.Errorf("%w: %w", schemas.ErrRowRefused, err)}}, nil
	}
	half := len(places) / 2
	refused, err = s.insertApart(ctx, t, b, t.part(&of, 0, half), deadline)
	if err != nil {
		return refused, err
	}
	more, err := s.insertApart(ctx, t, b, t.part(&of, half, len(places)), deadline)
	return append(refused, more...), err
}

// setApart inserts blocks that were refused together, row by row where need be, and
// takes the refused rows out of them. Its error is errUnknown: halves may be in by then.
func (w *writer) setApart(ctx context.Context, t table, blocks []*block, deadline time.Time) (refused []refusal, err error) {
	for _, b := range blocks {
		// The other tables' goroutines are at their own rows of the block.
		alone, err := w.store.insertApart(ctx, t, b.bounds, t.part(&b.rows, 0, t.count(&b.rows)), deadline)
		gone := make(map[place]struct{}, len(alone))
		for _, r := range alone {
			gone[r.place] = struct{}{}
		}
		t.drop(&b.rows, gone)
		refused = append(refused, alone...)
		if err != nil {
			return refused, fmt.Errorf("%w: %w", errUnknown, err)
		}
	}
	return refused, nil
}

// rejectRefused quarantines the records of refused rows, each once.
func (w *writer) rejectRefused(refused []refusal) {
	seen := make(map[place]bool)
	for _, r := range refused {
		if seen[r.place] {
			continue
		}
		seen[r.place] = true
		for name, id := range w.ids {
			if id == r.topic {
				w.reject(w.sources[name], &kgo.Record{Topic: name, Partition: r.partition, Offset: r.offset}, r.err)
			}
		}
	}
}
