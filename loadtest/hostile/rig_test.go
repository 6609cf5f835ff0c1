// Package hostile holds the client that makes attempts, as the sender has it,
// against what a target can do to it: names that lie, networks that break, and
// receivers that would have its memory.
package hostile

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/sender/deliver"
)

func TestMain(m *testing.M) {
	if os.Getenv(attemptsVariable) != "" {
		if err := attempts(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	// fasthttp's clock is one a process, for its servers' dates. A look-up that was
	// given up lives on until its nameserver's five seconds are over (package net).
	// A link of toxiproxy's whose reader has gone may wait for it for ever.
	pipeline.Main(m, pipeline.NoLeaks(goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run")))
}

// slack is what a loaded machine may need to schedule the end of an attempt.
const slack = 3 * time.Second

func request(url string) deliver.Request {
	return deliver.Request{
		URL: url, MessageID: "msg_1", Sequence: 7, Secrets: [][]byte{[]byte("0123456789abcdef0123456789abcdef")},
		Body: []byte(`{"id":"evt_1","event":"ping"}`), Timeout: 5 * time.Second,
	}
}
