package publish

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/schemas/kafka"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a publisher on a cluster with one topic.
func start(t *testing.T) *Publisher {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "events"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	p, err := New(kafka.Config{Brokers: cluster.ListenAddrs()}, "test", prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestEachRecordHasItsOwnAnswer(t *testing.T) {
	p := start(t)
	good := &kgo.Record{Topic: "events", Key: []byte("k"), Value: []byte("v")}
	if errs := p.Publish(t.Context(), good); errs != nil {
		t.Fatalf("got %v, want it durable", errs)
	}
	if good.Offset != 0 {
		t.Errorf("got offset %d, want the first", good.Offset)
	}
	large := &kgo.Record{Topic: "events", Value: make([]byte, 2<<20)}
	errs := p.Publish(t.Context(), &kgo.Record{Topic: "events", Value: []byte("a")}, large, &kgo.Record{Topic: "events", Value: []byte("b")})
	if len(errs) != 3 || errs[0] != nil || !errors.Is(errs[1], ErrTooLarge) || errs[2] != nil {
		t.Errorf("got %v, want the second too large", errs)
	}
	if n := p.buffered(); n != 0 {
		t.Errorf("got %d bytes waiting after all answers", n)
	}
}

func TestTooMuchIsRefusedAtOnce(t *testing.T) {
	p := start(t)
	var records []*kgo.Record
	for range maxBufferedBytes>>20 + 1 {
		records = append(records, &kgo.Record{Topic: "events", Value: make([]byte, 1<<20)})
	}
	for i, err := range p.Publish(t.Context(), records...) {
		if !errors.Is(err, ErrOverloaded) {
			t.Fatalf("got %v for record %d, want ErrOverloaded", err, i)
		}
	}
}

func TestGivingUpLeavesNobodyBlocked(t *testing.T) {
	p := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	errs := p.Publish(ctx, &kgo.Record{Topic: "events", Value: []byte("a")}, &kgo.Record{Topic: "events", Value: []byte("b")})
	for _, err := range errs {
		if err != nil && !errors.Is(err, ErrNotDurable) {
			t.Errorf("got %v, want ErrNotDurable", err)
		}
	}
	if errs := p.Publish(t.Context(), &kgo.Record{Topic: "events", Value: []byte("c")}); errs != nil {
		t.Errorf("got %v after another gave up", errs)
	}
}

func TestLabel(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{ErrOverloaded, "overloaded"},
		{ErrTooLarge, "too_large"},
		{ErrNotDurable, "timeout"},
		{classify(kgo.ErrMaxBuffered), "overloaded"},
		{classify(fmt.Errorf("x: %w", kerr.MessageTooLarge)), "too_large"},
		{classify(kerr.NotEnoughReplicas), kafka.ErrorLabel(kerr.NotEnoughReplicas)},
	} {
		if got := label(c.err); got != c.want {
			t.Errorf("label(%v) = %s, want %s", c.err, got, c.want)
		}
	}
}
