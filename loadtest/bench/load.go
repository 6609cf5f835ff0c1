// Package bench measures the whole pipeline on Apache Kafka and ClickHouse, with
// each service, the receiver and the client as a process of its own, and beside it
// the raw limit: the same client posting straight to the same receiver. And the
// sender alone, case by case: quick targets beside bad ones, many targets and one,
// a target that returns, a second sender that comes and goes.
//
//	go test -run '^$' -bench . -benchtime 1x ./bench
//	go test -run '^$' -bench Pipeline -benchtime 1x ./bench
//	go test -run '^$' -bench Sender/OneHangs -benchtime 1x ./bench
//
// It prints tables and writes JSON; flags say how much and where to: -events,
// -warmup, -rate, -seconds, -events-partitions and -results of the pipeline,
// -deliveries, -sender-warmup, -rounds, -steady, -share, -targets, -concurrency,
// -outage, -outage-rate and -audit of the sender, -deliveries-partitions of both.
// The parts have flags that begin with barrier- and patch-. No figure fails it: an event that did not arrive exactly once does.
package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	eventName    = "medical-encounters.created"
	payloadBytes = 500
)

// load is what a client posts: a bare loop of fasthttp on each connection.
type load struct {
	Addr string // host:port
	// Path is posted to; to each organization its own, with its number after a slash, if PathEach.
	Path     string
	PathEach bool
	Bearer   string // empty: no Authorization
	Want     int    // status
	// Run begins the id of each event: <run>-<number>.
	Run           string
	Organizations int
	Connections   int
	Events        int
	// Rate is events a second, each sent on time whatever became of those before;
	// 0 is as fast as they are answered.
	Rate int
}

// sent is what came of a load.
type sent struct {
	// StartedAt and EndedAt are before the first request and after the last answer;
	// SentAt, by the event's number, just before its request. Microseconds since 1970.
	StartedAt, EndedAt int64
	SentAt             []int64
	// PeakBytes is the most memory that the client had resident.
	PeakBytes int64
}

// errNotAccepted says that an answer had another status than it should.
var errNotAccepted = errors.New("not accepted")

func organization(n int) string             { return "bench-" + strconv.Itoa(n) }
func eventID(run string, number int) string { return run + "-" + strconv.Itoa(number) }

// post posts the load and blocks until every answer is there, or one is wrong.
func (l load) post(ctx context.Context) (sent, error) {
	client := &fasthttp.HostClient{
		Addr: l.Addr, MaxConns: l.Connections, MaxConnWaitTimeout: 30 * time.Second,
		ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second, NoDefaultUserAgentHeader: true,
		RetryIfErr: func(*fasthttp.Request, int, error) (bool, bool) { return false, false },
	}
	defer client.CloseIdleConnections()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	result := sent{SentAt: make([]int64, l.Events), StartedAt: time.Now().UnixMicro()}
	next := l.numbers(ctx)
	var workers sync.WaitGroup
	for range l.Connections {
		workers.Go(func() {
			p := newPoster(client, l)
			for number := next(); number < l.Events; number = next() {
				result.SentAt[number] = time.Now().UnixMicro()
				if err := p.post(number); err != nil {
					stop(fmt.Errorf("posting event %d to %s: %w", number, l.Addr, err))
					return
				}
			}
		})
	}
	workers.Wait()
	result.EndedAt = time.Now().UnixMicro()
	if ctx.Err() != nil {
		return sent{}, context.Cause(ctx)
	}
	return result, nil
}

// numbers gives each worker the number of its next event, when it is time for it:
// l.Events or more when there are no more, or ctx has ended.
func (l load) numbers(ctx context.Context) func() int {
	var last atomic.Int64
	if l.Rate == 0 {
		return func() int {
			if ctx.Err() != nil {
				return l.Events
			}
			return int(last.Add(1)) - 1
		}
	}
	start := time.Now()
	return func() int {
		number := int(last.Add(1)) - 1
		due := start.Add(time.Duration(number) * time.Second / time.Duration(l.Rate))
		select {
		case <-ctx.Done():
			return l.Events
		case <-time.After(time.Until(due)):
			return number
		}
	}
}

// poster is what a worker uses again for each request.
type poster struct {
	client *fasthttp.HostClient
	load   load
	req    fasthttp.Request
	resp   fasthttp.Response
	body   []byte
}

func newPoster(client *fasthttp.HostClient, l load) *poster {
	p := &poster{client: client, load: l}
	p.req.Header.SetMethod(fasthttp.MethodPost)
	p.req.SetRequestURI("http://" + l.Addr + l.Path)
	p.req.Header.SetContentType("application/json")
	if l.Bearer != "" {
		p.req.Header.Set("Authorization", "Bearer "+l.Bearer)
	}
	return p
}

func (p *poster) post(number int) error {
	if p.load.PathEach {
		p.req.SetRequestURI("http://" + p.load.Addr + p.load.Path + "/" + strconv.Itoa(number%p.load.Organizations))
	}
	// What the sender sets, for the receiver to tell requests apart. Postrider takes no notice.
	p.req.Header.Set("webhook-id", eventID(p.load.Run, number))
	p.body = p.load.appendEvent(p.body[:0], number)
	p.req.SetBodyRaw(p.body)
	if err := p.client.Do(&p.req, &p.resp); err != nil {
		return err //nolint:wrapcheck // the caller says what it was for
	}
	if p.resp.StatusCode() != p.load.Want {
		return fmt.Errorf("status %d, want %d: %s: %w", p.resp.StatusCode(), p.load.Want, p.resp.Body(), errNotAccepted)
	}
	return nil
}

// appendEvent appends an event in plain JSON. Organizations take turns.
func (l load) appendEvent(dst []byte, number int) []byte {
	dst = append(dst, `{"id":"`...)
	dst = append(dst, eventID(l.Run, number)...)
	dst = append(dst, `","event":"`+eventName+`","organization":"`...)
	dst = append(dst, organization(number%l.Organizations)...)
	dst = append(dst, `","payload":`...)
	dst = appendPayload(dst, number)
	return append(dst, '}')
}

// appendPayload appends an object of exactly payloadBytes bytes. Its text is six
// random bits a character: less is left to a compressor than real documents leave.
func appendPayload(dst []byte, number int) []byte {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	start := len(dst)
	dst = append(dst, `{"number":`...)
	dst = strconv.AppendInt(dst, int64(number), 10)
	dst = append(dst, `,"text":"`...)
	random := rand.NewPCG(1, uint64(number)) //nolint:gosec // a number of an event, and a filler that is no secret
	end := start + payloadBytes - len(`"}`)
	for len(dst) < end {
		for bits, n := random.Uint64(), 0; n < 10 && len(dst) < end; bits, n = bits>>6, n+1 {
			dst = append(dst, letters[bits&63])
		}
	}
	return append(dst, `"}`...)
}
