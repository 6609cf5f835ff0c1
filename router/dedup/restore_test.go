package dedup_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/postrider/postrider/router/dedup"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/kafka"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const routedTopic = "test.routed"

func startLog(t *testing.T) (kafka.Config, dedup.Log) {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, routedTopic))
	if err != nil {
		t.Fatalf("starting kfake: %v", err)
	}
	t.Cleanup(cluster.Close)
	cfg := kafka.Config{Brokers: cluster.ListenAddrs(), TopicPrefix: "test."}
	return cfg, dedup.Log{
		NewClient: func(opts ...kgo.Opt) (*kgo.Client, error) { return cfg.NewClient("test", opts...) },
		Topic:     routedTopic, Logger: slog.New(slog.DiscardHandler), Age: time.Hour,
	}
}

func startClient(t *testing.T, cfg kafka.Config, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := cfg.NewClient("test", append([]kgo.Opt{kgo.ProducerBatchCompression(kgo.NoCompression())}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func routed(offset uint64, result schemas.RoutedResult) *kgo.Record {
	r := schemas.Routed{Partition: 1, Entries: []schemas.RoutedEntry{{IDHash: id(offset), Result: result}}}
	return r.Record(routedTopic)
}

func verdict(t *testing.T, l dedup.Log, limit int, offset uint64) dedup.Verdict {
	t.Helper()
	v, err := see(within(t), l, limit, offset)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var errNotEmpty = errors.New("the empty partition has ids")

func see(ctx context.Context, l dedup.Log, limit int, offset uint64) (dedup.Verdict, error) {
	windows, err := l.Windows(ctx, []int32{0, 1}, limit)
	if err != nil {
		return 0, err
	}
	if windows[0].Len() != 0 {
		return 0, errNotEmpty
	}
	return windows[1].See(id(offset), [8]byte{}, time.Now()), nil
}

func TestWindowsReadsAsMuchAsTheWindowHolds(t *testing.T) {
	t.Parallel()
	cfg, l := startLog(t)
	const records = 6_000 // more than are read at first
	var all []*kgo.Record
	for offset := range uint64(records) {
		all = append(all, routed(offset, schemas.RoutedMatched))
	}
	if err := startClient(t, cfg).ProduceSync(within(t), all...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		limit  int
		offset uint64
		want   dedup.Verdict
	}{
		{records, 0, dedup.Duplicate},
		{records - 1, 0, dedup.Fresh},
		{5_000, 1_000, dedup.Duplicate},
		{5_000, 999, dedup.Fresh},
		{10, records - 1, dedup.Duplicate},
	} {
		if got := verdict(t, l, c.limit, c.offset); got != c.want {
			t.Errorf("offset %d in a window of %d: got %v, want %v", c.offset, c.limit, got, c.want)
		}
	}
}

func TestWindowsForgetsWhatIsTooOld(t *testing.T) {
	t.Parallel()
	cfg, l := startLog(t)
	old, young := routed(0, schemas.RoutedMatched), routed(1, schemas.RoutedMatched)
	old.Timestamp = time.Now().Add(-2 * time.Hour)
	if err := startClient(t, cfg).ProduceSync(within(t), old, young).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if got := verdict(t, l, 100, 0); got != dedup.Fresh {
		t.Errorf("the old id: got %v, want %v", got, dedup.Fresh)
	}
	if got := verdict(t, l, 100, 1); got != dedup.Duplicate {
		t.Errorf("the young id: got %v, want %v", got, dedup.Duplicate)
	}
}

func TestWindowsWaitsForOpenTransactions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  kgo.TransactionEndTry
		want dedup.Verdict
	}{
		"committed": {kgo.TryCommit, dedup.Duplicate},
		"aborted":   {kgo.TryAbort, dedup.Fresh},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, l := startLog(t)
			cl := startClient(t, cfg, kgo.TransactionalID("another router"))
			if err := cl.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			if err := cl.ProduceSync(within(t), routed(7, schemas.RoutedMatched)).FirstErr(); err != nil {
				t.Fatal(err)
			}
			var got dedup.Verdict
			ctx, read := within(t), make(chan error, 1)
			go func() {
				var err error
				got, err = see(ctx, l, 100, 7)
				read <- err
			}()
			select {
			case err := <-read:
				t.Fatalf("the window was read past an open transaction: %v", err)
			case <-time.After(200 * time.Millisecond):
			}
			if err := cl.EndTransaction(within(t), c.end); err != nil {
				t.Fatal(err)
			}
			if err := <-read; err != nil || got != c.want { // ctx bounds it
				t.Errorf("got %v, %v, want %v", got, err, c.want)
			}
		})
	}
}

func TestWindowsPassesBadRecordsAndFreeIDs(t *testing.T) {
	t.Parallel()
	cfg, l := startLog(t)
	cl := startClient(t, cfg)
	bad := routed(0, schemas.RoutedMatched)
	bad.Value = bad.Value[:20]
	err := cl.ProduceSync(within(t), bad, routed(1, schemas.RoutedRejected), routed(2, schemas.RoutedMatched)).FirstErr()
	if err != nil {
		t.Fatal(err)
	}
	for offset, want := range []dedup.Verdict{dedup.Fresh, dedup.Fresh, dedup.Duplicate} {
		if got := verdict(t, l, 100, uint64(offset)); got != want {
			t.Errorf("id %d: got %v, want %v", offset, got, want)
		}
	}

	newer := routed(3, schemas.RoutedMatched)
	newer.Headers = []kgo.RecordHeader{{Key: schemas.HeaderVersion, Value: []byte("2")}}
	if err := cl.ProduceSync(within(t), newer).FirstErr(); err != nil {
		t.Fatal(err)
	}
	_, err = l.Windows(within(t), []int32{1}, 100)
	if _, ok := errors.AsType[*schemas.UnknownVersionError](err); !ok {
		t.Errorf("got %v, want an unknown version", err)
	}
}

// TestWindowsPassesBombs: a batch that inflates beyond all bounds, in the middle of the
// log and at its end.
func TestWindowsPassesBombs(t *testing.T) {
	t.Parallel()
	cfg, l := startLog(t)
	cl := startClient(t, cfg)
	hostile, err := cfg.NewClient("hostile", kgo.ProducerBatchMaxBytes(80<<20), kgo.ProducerBatchCompression(kgo.ZstdCompression()))
	if err != nil {
		t.Fatal(err)
	}
	defer hostile.Close()
	for id := range uint64(2) {
		bomb := routed(9, schemas.RoutedMatched)
		bomb.Value = make([]byte, 70<<20)
		if err := errors.Join(cl.ProduceSync(within(t), routed(id, schemas.RoutedMatched)).FirstErr(), hostile.ProduceSync(within(t), bomb).FirstErr()); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range []dedup.Verdict{dedup.Duplicate, dedup.Duplicate, dedup.Fresh} {
		if got := verdict(t, l, 100, uint64(id)); got != want {
			t.Errorf("id %d: got %v, want %v", id, got, want)
		}
	}
}
