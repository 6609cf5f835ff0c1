package router

import (
	"testing"
	"time"
)

func TestBlocked(t *testing.T) {
	t.Parallel()
	start := time.Unix(1_700_000_000, 0)
	var b blocked
	for _, step := range []struct {
		after           time.Duration
		stable, written map[int32]int64
		want            time.Duration
	}{
		{0, map[int32]int64{0: 5, 1: 5}, map[int32]int64{0: 5, 1: 5}, 0},
		{2 * time.Second, map[int32]int64{0: 5, 1: 5}, map[int32]int64{0: 6, 1: 5}, 0},
		{4 * time.Second, map[int32]int64{0: 5, 1: 6}, map[int32]int64{0: 9, 1: 7}, 2 * time.Second},
		{6 * time.Second, map[int32]int64{0: 5, 1: 7}, map[int32]int64{0: 9, 1: 8}, 4 * time.Second},
		{8 * time.Second, map[int32]int64{0: 9, 1: 7}, map[int32]int64{0: 9, 1: 8}, 2 * time.Second},
		{10 * time.Second, map[int32]int64{0: 9, 1: 8}, map[int32]int64{0: 10, 1: 8}, 0},
	} {
		if got := b.seen(start.Add(step.after), step.stable, step.written); got != step.want {
			t.Errorf("after %v: got %v, want %v", step.after, got, step.want)
		}
	}
}
