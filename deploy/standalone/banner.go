package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/postrider/postrider/schemas"
)

// banner is what an operator is told when everything is ready.
type banner struct {
	rest, admin    string // addresses
	kafka          string
	clickhouseHTTP string // empty: another ClickHouse is used
	clickhouse     string
	data           string
	adminKey       string // only where it was made now
	// bearer is the admin key as a shell finds it.
	bearer string
	// target is a URL that a webhook may have.
	target string
}

func newBanner(cfg *config, f *folder, b *base, rest, admin string) banner {
	shown := banner{
		rest: reachable(rest), admin: reachable(admin), data: f.path,
		kafka: strings.Join(cfg.kafkaConfig(b.kafkaAddress()).Brokers, ","), clickhouse: "as --clickhouse says",
		bearer: "$POSTRIDER_ADMIN_KEY", target: "https://example.com/hook",
	}
	if b.clickhouse != nil {
		shown.clickhouseHTTP = b.clickhouse.HTTPAddr()
		shown.clickhouse = "http://" + b.clickhouse.HTTPAddr() + ", native " + b.clickhouse.NativeAddr()
	}
	if f.adminKeyPath != "" {
		shown.bearer = "$(cat " + quote(f.adminKeyPath) + ")"
	}
	if f.madeKey {
		shown.adminKey = f.adminKey
	}
	policy, err := schemas.ParseTargetPolicy(cfg.allowTargets)
	if err == nil && policy.Allows(netip.AddrFrom4([4]byte{127, 0, 0, 1}), "127.0.0.1") {
		shown.target = "http://127.0.0.1:9999/hook"
	}
	return shown
}

// reachable is where a client on this machine finds a listener on every interface.
func reachable(address string) string {
	parsed, err := netip.ParseAddrPort(address)
	if err == nil && parsed.Addr().IsUnspecified() {
		return net.JoinHostPort("localhost", fmt.Sprint(parsed.Port()))
	}
	return address
}

// quote makes one word of a path for a shell, inside of double quotes too: $(…) begins anew.
func quote(path string) string {
	return "'" + strings.ReplaceAll(filepath.ToSlash(path), "'", `'\''`) + "'"
}

func (b banner) String() string {
	var text strings.Builder
	text.WriteString("\nPostrider is ready.\n\n")
	line := func(name, value string) { fmt.Fprintf(&text, "  %-11s %s\n", name, value) }
	line("REST", "http://"+b.rest)
	line("health", "http://"+b.admin+"/readyz, /livez, /metrics")
	line("Kafka", b.kafka)
	line("ClickHouse", b.clickhouse)
	line("data", b.data)
	if b.adminKey != "" {
		line("admin key", b.adminKey)
		line("", "(made now and kept in "+filepath.Join(b.data, adminKeyFile)+"; it is not shown again)")
	}
	fmt.Fprintf(&text, `
Create a webhook (the answer shows its signing secret, this once):

  curl -sS http://%[1]s/webhook-events -H "Authorization: Bearer %[2]s" -H 'Content-Type: application/json' \
    -d '{"organization":"acme","active":true,"url":"%[3]s","events":"medical-encounters"}'

Post an event:

  curl -sS http://%[1]s/v1/events -H "Authorization: Bearer %[2]s" -H 'Content-Type: application/json' \
    -d '{"event":"medical-encounters.created","organization":"acme","payload":{"id":7}}'

See what came of it:

`, b.rest, b.bearer, b.target)
	const query = "SELECT started_at, event, attempt, result, reason, status_code, url FROM postrider.outcomes_v1 ORDER BY started_at DESC LIMIT 10"
	if b.clickhouseHTTP == "" {
		fmt.Fprintf(&text, "  %s\n\n", query)
	} else {
		fmt.Fprintf(&text, "  curl -sS http://%s/ --data-binary '%s FORMAT PrettyCompact'\n\n", b.clickhouseHTTP, query)
	}
	return text.String()
}

// welcome shows the banner when everything is ready, and waits for ctx to end.
func welcome(ctx context.Context, log *slog.Logger, b banner) error {
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	told := began
	for !ready(ctx, b.admin) {
		if time.Since(told) > 15*time.Second {
			told = time.Now()
			log.Warn("not ready yet; /readyz says why", "waited", time.Since(began).Round(time.Second), "url", "http://"+b.admin+"/readyz")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	if _, err := os.Stdout.WriteString(b.String()); err != nil {
		log.Warn("showing where everything listens", "error", err)
	}
	<-ctx.Done()
	return nil
}

func ready(ctx context.Context, admin string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/readyz", http.NoBody)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close() // its status is all that counts
	return resp.StatusCode == http.StatusOK
}
