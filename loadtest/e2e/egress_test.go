package e2e

import (
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

// TestEgress is P8: no webhook reaches a forbidden address. REST refuses the URL,
// and a sender dials none that stands in the topic all the same.
func TestEgress(t *testing.T) {
	cluster, prefix := pipeline.SharedKafka(t)
	s := prepare(t, cluster, prefix, pipeline.SharedClickHouse(t))
	s.startIngest(t, "ingest-1") // no target is allowed beyond the public ones
	s.startSender(t, "sender-1", "--retry-schedule=1s")
	s.router = pipeline.Start(t, "router", join(s.common(), nil, "--instance=router-1")...)
	for _, service := range s.services() {
		service.WaitReady(t)
	}
	door := listen(t)
	t.Run("refused by REST", func(t *testing.T) {
		for _, url := range append(forbidden(door.port), "http://example.com/", "https://10.1.2.3/", "https://169.254.169.254/latest/meta-data",
			"https://100.100.100.200/", "https://[fd00::1]/", "https://[fe80::1%25eth0]/", "https://[64:ff9b::7f00:1]/", "https://2130706433/",
			"https://0x7f.1/", "https://127.1/", "https://metadata.google.internal/", "https://intranet/", "https://example.com@127.0.0.1/") {
			body := fmt.Sprintf(`{"organization":"acme","url":%q,"events":"*"}`, url)
			wantProblem(t, s.call(t, http.MethodPost, "/webhook-events", body), 422, "#/url")
		}
	})

	t.Run("not dialled by the sender", func(t *testing.T) {
		urls := forbidden(door.port)
		s.write(t, urls)
		id := s.post(t, `{"event":"a.b","organization":"acme"}`)
		const ended = `SELECT count(), uniqExact(webhook_id), countIf(result = 'dead'), countIf(reason IN ('invalid_target', 'egress_denied')),
			countIf(status_code > 0), sum(connect_ms) FROM postrider.outcomes WHERE event_id = `
		s.waitQuery(t, ended+`'`+id+`'`, fmt.Sprintf("%d\t%d\t%d\t%d\t0\t0", 2*len(urls), len(urls), len(urls), 2*len(urls)))
	})
	if n := door.opened.Load(); n != 0 {
		t.Errorf("%d connections were made, want none", n)
	}

	// That nobody came shows something only if the door opens.
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", door.port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pipeline.Wait(t, soon, "the test's own connection", func() error {
		if n := door.opened.Load(); n != 1 {
			return fmt.Errorf("%w: %d connections", errNotYet, n)
		}
		return nil
	})
}

// forbidden are URLs of this machine.
func forbidden(port string) []string {
	return []string{
		"http://127.0.0.1:" + port + "/", "https://127.0.0.1:" + port + "/", "https://127.8.9.10:" + port + "/", "https://0.0.0.0:" + port + "/",
		"https://[::1]:" + port + "/", "https://[::ffff:127.0.0.1]:" + port + "/", "https://localhost:" + port + "/", "https://a.localhost:" + port + "/",
	}
}

// write puts webhooks into the topic as nobody's ingest would.
func (s *system) write(t *testing.T, urls []string) {
	t.Helper()
	ring, err := schemas.ParseKeyRing(keyRing)
	if err != nil {
		t.Fatal(err)
	}
	cl := s.client(t)
	for _, url := range urls {
		now := time.Now().UTC()
		w := schemas.Webhook{
			ID: schemas.NewWebhookID(), Organization: "acme", Active: true, URL: url, Events: []string{"*"},
			Generation: 1, Revision: 1, CreatedAt: now, UpdatedAt: now,
		}
		sealed, err := ring.Seal(w.SecretIdentity(), schemas.NewSecret())
		if err != nil {
			t.Fatal(err)
		}
		w.Secrets = []schemas.SealedSecret{sealed}
		record, err := w.Record(s.topics.Webhooks)
		if err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// door counts who comes to a port of every address of this machine.
type door struct {
	port   string
	opened atomic.Int64
}

func listen(t *testing.T) *door {
	t.Helper()
	d := &door{}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", ":0") // IPv6 too, where the machine has it
	if err != nil {
		t.Fatal(err)
	}
	_, d.port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			d.opened.Add(1)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		<-ended
	})
	return d
}
