package pipeline

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Proxy is toxiproxy between a client and a server: a network that can be made bad.
type Proxy struct {
	// Addr is where clients find it, host:port.
	Addr string

	proxy *toxiproxy.Proxy
}

// StartProxy starts a proxy to an address, as good as none. It ends with the test.
func StartProxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	zerolog.SetGlobalLevel(zerolog.Disabled) // its toxics log past the logger they are given
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	p := &Proxy{proxy: toxiproxy.NewProxy(server, "proxy", "127.0.0.1:0", upstream)}
	if err := p.proxy.Start(); err != nil {
		t.Fatalf("starting the proxy: %v", err)
	}
	p.Addr = p.proxy.Listen
	t.Cleanup(func() {
		p.Heal() // a toxic in its wait outlives the proxy
		p.proxy.Stop()
	})
	return p
}

// Poison adds a toxic of a kind, as toxiproxy's documentation has them, to a stream:
// "upstream" is towards the server, "downstream" towards the client.
func (p *Proxy) Poison(t testing.TB, kind, stream string, attributes map[string]int64) {
	t.Helper()
	text, err := json.Marshal(map[string]any{"type": kind, "stream": stream, "attributes": attributes})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.proxy.Toxics.AddToxicJson(strings.NewReader(string(text))); err != nil {
		t.Fatalf("adding the toxic: %v", err)
	}
}

// Heal takes all toxics out.
func (p *Proxy) Heal() { p.proxy.Toxics.ResetToxics(context.Background()) }
