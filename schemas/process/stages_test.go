package process

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
)

// journal keeps what happens to stages, in order.
type journal struct {
	mu      sync.Mutex
	entries []string
}

func (j *journal) add(entry string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, entry)
}

// stage returns err when it is cancelled; started, if there is one, is closed before.
func (j *journal) stage(name string, started chan struct{}, err error) Stage {
	return Stage{Name: name, Run: func(ctx context.Context) error {
		if started != nil {
			close(started)
		}
		<-ctx.Done()
		j.add(name)
		return err
	}}
}

func TestRunStopsInReverseOrder(t *testing.T) {
	var stopped journal
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	go func() {
		<-started
		cancel()
	}()
	err := Run(ctx, stopped.stage("kafka", nil, nil), stopped.stage("router", nil, context.Canceled), stopped.stage("sender", started, nil))
	if want := []string{"sender", "router", "kafka"}; err != nil || !slices.Equal(stopped.entries, want) {
		t.Errorf("got %v, %v; want %v", stopped.entries, err, want)
	}
}

func TestRunStopsAllWhenOneReturns(t *testing.T) {
	errLost, errClosing := errors.New("lost"), errors.New("closing")
	for name, first := range map[string]error{"error": errLost, "no error": nil} {
		t.Run(name, func(t *testing.T) {
			var stopped journal
			err := Run(t.Context(),
				stopped.stage("kafka", nil, errClosing),
				Stage{Name: "router", Run: func(context.Context) error { return first }},
				stopped.stage("sender", nil, nil),
			)
			if !slices.Equal(stopped.entries, []string{"sender", "kafka"}) {
				t.Errorf("got %v, want sender, kafka", stopped.entries)
			}
			want := "running kafka: closing"
			if first != nil {
				want = "running router: lost\nrunning kafka: closing"
			}
			if err == nil || err.Error() != want || !errors.Is(err, errClosing) {
				t.Errorf("got %q, want %q", err, want)
			}
		})
	}
}
