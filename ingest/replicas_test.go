package ingest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// loss makes connections to the brokers lose answers: the request has been
// carried out, and the client is not told.
type loss struct {
	key   kmsg.Key
	every int64 // the how many-eth answer is lost
	seen  atomic.Int64
	lost  atomic.Int64
}

func (l *loss) listen(network, address string) (net.Listener, error) {
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), network, address)
	return lossyListener{ln, l}, err
}

type lossyListener struct {
	net.Listener
	loss *loss
}

func (l lossyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &lossyConn{Conn: c, loss: l.loss}, err
}

// lossyConn is a broker's end. kfake reads a request's length, then its body,
// which begins with the API key.
type lossyConn struct {
	net.Conn
	loss *loss
	cut  atomic.Bool
}

func (c *lossyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 4 && int(binary.BigEndian.Uint16(b)) == int(c.loss.key) && c.loss.seen.Add(1)%c.loss.every == 0 {
		c.cut.Store(true)
	}
	return n, err
}

func (c *lossyConn) Write(b []byte) (int, error) {
	if c.cut.Load() {
		c.loss.lost.Add(1)
		return 0, errors.Join(net.ErrClosed, c.Close())
	}
	return c.Conn.Write(b)
}

// storm lets workers on each replica count up one number, each step with
// If-Match, and returns how many steps they were told, or found out, were made.
func storm(t *testing.T, replicas []*replica, path string, workers, steps int) (unknown int64) {
	t.Helper()
	var (
		wg        sync.WaitGroup
		unsettled atomic.Int64
	)
	for i := range workers * len(replicas) {
		wg.Go(func() {
			for step := range steps {
				n, err := countUp(t.Context(), replicas[i%len(replicas)], path, "w"+strconv.Itoa(i), strconv.Itoa(step))
				if err != nil {
					t.Error(err)
					return
				}
				unsettled.Add(n)
			}
		})
	}
	wg.Wait()
	return unsettled.Load()
}

// countUp makes one step of a worker, however often it takes.
func countUp(ctx context.Context, r *replica, path, worker, step string) (unknown int64, err error) {
	for {
		got, err := r.try(ctx, request{method: "GET", path: path})
		if err != nil {
			return unknown, err
		}
		n, _ := strconv.Atoi(metadataOf(got, "n"))
		body := fmt.Sprintf(`{"metadata":{"n":"%d",%q:%q}}`, n+1, worker, step)
		got, err = r.try(ctx, request{method: "PATCH", path: path, body: body, header: map[string]string{"If-Match": got.header.Get("ETag")}})
		switch {
		case err != nil:
			return unknown, err
		case got.status == http.StatusOK:
			return unknown, nil
		case got.status == http.StatusServiceUnavailable:
			unknown++
			// An empty change is answered with what stands after it.
			for got.status == http.StatusServiceUnavailable {
				if got, err = r.try(ctx, request{method: "PATCH", path: path, body: `{}`}); err != nil {
					return unknown, err
				}
			}
			if metadataOf(got, worker) == step {
				return unknown, nil
			}
		case got.status != http.StatusPreconditionFailed:
			return unknown, fmt.Errorf("got status %d with %s", got.status, got.raw)
		}
	}
}

func metadataOf(r response, name string) string {
	metadata, _ := r.json["metadata"].(map[string]any)
	value, _ := metadata[name].(string)
	return value
}

func testNoLostUpdate(t *testing.T, f *fixture, replicas []*replica, steps int) {
	t.Helper()
	const workers = 3
	id := replicas[0].do(t, request{path: "/v1/webhooks", body: create}).want(t, http.StatusCreated).text("id")
	unknown := storm(t, replicas, "/v1/webhooks/"+id, workers, steps)
	want := strconv.Itoa(workers * steps * len(replicas))
	w := lastWebhook(t, f.readAll(t, f.topics.Webhooks))
	if w.Metadata["n"] != want {
		t.Errorf("got number %s after %s steps", w.Metadata["n"], want)
	}
	// Another replica's row is found without waiting for it to come by.
	for _, r := range replicas {
		r.do(t, request{method: "GET", path: "/v1/webhooks/" + id}).want(t, http.StatusOK)
	}
	t.Logf("%d of %s steps were answered with 503", unknown, want)
}

func TestReplicasLoseNoUpdate(t *testing.T) {
	f, one := start(t)
	two := f.startReplica(t, "two")
	two.waitReady(t)
	testNoLostUpdate(t, f, []*replica{one, two}, 15)
	if n := one.metric(t, "postrider_ingest_registry_takeovers_total"); n < 2 {
		t.Errorf("got %v takeovers by a replica, want them to have taken turns", n)
	}
}

func TestReplicasLoseNoUpdateWhenAnswersAreLost(t *testing.T) {
	for _, key := range []kmsg.Key{kmsg.EndTxn, kmsg.Produce, kmsg.InitProducerID} {
		t.Run(key.Name(), func(t *testing.T) {
			t.Parallel() // most of it is waiting to try again
			l := &loss{key: key, every: 3}
			f, one := start(t, kfake.ListenFn(l.listen))
			two := f.startReplica(t, "two")
			two.waitReady(t)
			testNoLostUpdate(t, f, []*replica{one, two}, 3)
			if l.lost.Load() == 0 {
				t.Error("no answer was lost")
			}
		})
	}
}
