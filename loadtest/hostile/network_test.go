package hostile

import (
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
)

// toxic is a network that breaks between the sender and a good receiver.
type toxic struct {
	name       string
	kind       string
	stream     string // upstream is towards the receiver
	attributes map[string]int64
	timeout    time.Duration // of the attempt; 5 s where 0
	want       end
	received   bool // the receiver saw the request whole
}

func toxics() []toxic {
	type attributes = map[string]int64
	const up, down = "upstream", "downstream"
	delivered, late, reset := end{200, "", ""}, end{0, deliver.ReasonTimeout, ""}, end{0, deliver.ReasonReset, ""}
	lateBody, cutBody := end{200, "", deliver.ReasonTimeout}, end{200, "", deliver.ReasonReset}
	const short = 400 * time.Millisecond
	return []toxic{
		{"latency", "latency", down, attributes{"latency": 200, "jitter": 50}, 0, delivered, true},
		{"latency on the way there", "latency", up, attributes{"latency": 200}, 0, delivered, true},
		{"latency over the timeout", "latency", down, attributes{"latency": 30_000}, short, late, true},
		{"latency over the timeout on the way there", "latency", up, attributes{"latency": 30_000}, short, late, false},
		{"nothing comes through", "timeout", down, attributes{"timeout": 0}, short, late, true},
		{"nothing goes through", "timeout", up, attributes{"timeout": 0}, short, late, false},
		{"closed after a while", "timeout", down, attributes{"timeout": 100}, 0, reset, true},
		{"reset", "reset_peer", down, attributes{"timeout": 0}, 0, reset, true},
		{"reset after a while", "reset_peer", down, attributes{"timeout": 100}, 0, reset, true},
		{"reset on the way there", "reset_peer", up, attributes{"timeout": 0}, 0, reset, false},
		{"slow close", "slow_close", down, attributes{"delay": 30_000}, 0, delivered, true},
		{"slow close on the way there", "slow_close", up, attributes{"delay": 30_000}, 0, delivered, true},
		{"narrow", "bandwidth", down, attributes{"rate": 20}, 0, delivered, true},
		{"too narrow", "bandwidth", down, attributes{"rate": 1}, 1500 * time.Millisecond, lateBody, true},
		{"narrow on the way there", "bandwidth", up, attributes{"rate": 20}, 0, delivered, true},
		{"too narrow on the way there", "bandwidth", up, attributes{"rate": 1}, short, late, false},
		{"sliced", "slicer", down, attributes{"average_size": 16, "size_variation": 8, "delay": 50}, 0, delivered, true},
		{"sliced on the way there", "slicer", up, attributes{"average_size": 16, "size_variation": 8, "delay": 50}, 0, delivered, true},
		{"cut off in the head", "limit_data", down, attributes{"bytes": 20}, 0, reset, true},
		{"cut off in the body", "limit_data", down, attributes{"bytes": 1000}, 0, cutBody, true},
		{"cut off in the request", "limit_data", up, attributes{"bytes": 100}, 0, reset, false},
	}
}

// TestNetworksThatBreak puts toxiproxy before a receiver that answers 200 with a
// body of 4 KiB. An attempt ends by its own timeout with a reason, and is delivered
// where the network lets it be.
func TestNetworksThatBreak(t *testing.T) {
	good := receiver.Start(t, receiver.Config{})
	good.Answers("/", receiver.Answer{Body: []byte(strings.Repeat("x", 4096))})
	allowed, err := schemas.ParseTargetPolicy([]string{"127.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range toxics() {
		t.Run(tt.name, func(t *testing.T) {
			proxy := pipeline.StartProxy(t, good.Addr())
			proxy.Poison(t, tt.kind, tt.stream, tt.attributes)
			client := deliver.New(deliver.Config{Policy: allowed})
			t.Cleanup(client.Close)
			r := request("http://" + proxy.Addr + "/")
			r.Body = []byte(`{"id":"evt_1","event":"ping","payload":"` + strings.Repeat("x", 4096) + `"}`)
			if tt.timeout > 0 {
				r.Timeout = tt.timeout
			}
			before := good.Count("/")
			a := client.Do(t.Context(), r)
			if got := (end{a.StatusCode, a.Reason, a.BodyReason}); got != tt.want {
				t.Errorf("came to %v, want %v", got, tt.want)
			}
			if limit := r.Timeout + r.Timeout/10 + slack; a.Duration > limit {
				t.Errorf("took %s, want at most %s", a.Duration, limit)
			}
			if tt.want.Reason == deliver.ReasonTimeout && a.Duration < r.Timeout {
				t.Errorf("took %s, want the whole %s", a.Duration, r.Timeout)
			}
			if tt.received {
				good.WaitFor(t, "/", before+1, slack)
			} else if n := good.Count("/") - before; n != 0 {
				t.Errorf("%d requests came through, want none", n)
			}
		})
	}
}
