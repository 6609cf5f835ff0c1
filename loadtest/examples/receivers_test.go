package examples

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/schemas"
)

const receivers = "../../schemas/receive/README.md"

// TestReceivers runs the three receivers of the page on receiving, and calls them as a sender does.
func TestReceivers(t *testing.T) {
	tests := map[string]func(*testing.T) (path string, args, env []string){
		"go": func(t *testing.T) (string, []string, []string) {
			t.Helper()
			return buildGo(t, block(t, receivers, "go")), nil, nil
		},
		"python": func(t *testing.T) (string, []string, []string) {
			t.Helper()
			return pipeline.Python(t), []string{write(t, "receiver.py", block(t, receivers, "python"))}, nil
		},
		"js": func(t *testing.T) (string, []string, []string) {
			t.Helper()
			node, modules := pipeline.Node(t)
			return node, []string{write(t, "receiver.js", block(t, receivers, "js"))}, []string{"NODE_PATH=" + modules}
		},
	}
	for language, prepare := range tests {
		t.Run(language, func(t *testing.T) {
			secret := schemas.NewSecret()
			path, args, env := prepare(t)
			port := pipeline.FreePort(t)
			out := launch(t, append(env, "PORT="+strconv.Itoa(port), "WEBHOOK_SECRET="+schemas.FormatSecret(secret)), path, args...)
			callReceiver(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), secret, out)
		})
	}
}

// callReceiver holds a receiver to what the page says of all of them.
func callReceiver(t *testing.T, addr string, secret []byte, out *output) {
	t.Helper()
	pipeline.Wait(t, soon, "the receiver", func() error {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	const body = `{"id":"evt_1","event":"labs.created","payload":{"text":"é😀","n":1.0}}`
	now := time.Now()
	signed := func(id string, at time.Time) http.Header {
		// As while the secret is rotated: by another one as well.
		signatures := schemas.AppendSignature(nil, schemas.NewSecret(), id, at.Unix(), []byte(body))
		signatures = schemas.AppendSignature(append(signatures, ' '), secret, id, at.Unix(), []byte(body))
		return http.Header{
			"Webhook-Id": {id}, "Webhook-Timestamp": {strconv.FormatInt(at.Unix(), 10)}, "Webhook-Signature": {string(signatures)},
			"Content-Type": {"application/json"},
		}
	}
	unsigned := signed("msg_x", now)
	unsigned.Del("Webhook-Signature")
	tests := []struct {
		name   string
		header http.Header
		body   string
		want   func(status int) bool
	}{
		{"a message", signed("msg_1", now), body, isOK},
		{"the same again", signed("msg_1", now.Add(time.Second)), body, isOK},
		{"another body", signed("msg_2", now), body + " ", isRefusal},
		{"another id", withID(signed("msg_3", now), "msg_4"), body, isRefusal},
		{"an old message", signed("msg_5", now.Add(-6*time.Minute)), body, isRefusal},
		{"no signature", unsigned, body, isRefusal},
		{"no header", http.Header{}, body, isRefusal},
		{"too long", signed("msg_6", now), strings.Repeat("x", 2<<20), isRefusal},
	}
	for _, tt := range tests {
		if status, err := post(t.Context(), addr, tt.header, tt.body); err != nil && tt.name != "too long" || err == nil && !tt.want(status) {
			t.Errorf("%s: answered %d, %v", tt.name, status, err)
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if status, err := post(t.Context(), addr, signed("msg_7", now), body); err != nil || status != http.StatusOK {
				t.Errorf("one of eight copies at once: answered %d, %v", status, err)
			}
		})
	}
	wg.Wait()
	pipeline.Wait(t, soon, "what the receiver tells", func() error {
		const want = "handled msg_1 labs.created\nhandled msg_7 labs.created\n"
		if got := handled(out.String()); got != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
}

func isOK(status int) bool      { return status == http.StatusOK }
func isRefusal(status int) bool { return status >= 400 && status < 500 }

func withID(header http.Header, id string) http.Header {
	header.Set(schemas.HeaderWebhookID, id)
	return header
}

// handled leaves out what is not about messages, such as Python's log of requests.
func handled(text string) string {
	var lines strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "handled ") {
			lines.WriteString(line)
		}
	}
	return lines.String()
}

// post sends one request, whose connection is its own.
func post(ctx context.Context, addr string, header http.Header, body string) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/", strings.NewReader(body))
	if err != nil {
		return 0, fmt.Errorf("making request: %w", err)
	}
	r.Header, r.Close = header, true
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, fmt.Errorf("calling the receiver: %w", err)
	}
	return resp.StatusCode, resp.Body.Close()
}
