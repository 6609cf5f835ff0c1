package deliver

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/schemas"
)

// Reason says in one word why an attempt is not a success: the outcome's
// reason, and a metric's label.
type Reason string

// The closed set of reasons.
const (
	// Before anything was sent.

	ReasonInvalidTarget Reason = "invalid_target" // the URL breaks a rule for targets
	ReasonNoSecret      Reason = "no_secret"      // the webhook has no secret to sign with, or an empty one
	ReasonEgressDenied  Reason = "egress_denied"  // the name resolves to an address that the policy forbids

	// On the way to a connection.

	ReasonDNSFailed      Reason = "dns_failed"      // no such name, no address, or the resolver answered with an error
	ReasonDNSTimeout     Reason = "dns_timeout"     // the resolver did not answer in time
	ReasonConnectRefused Reason = "connect_refused" // nothing listens there
	ReasonConnectTimeout Reason = "connect_timeout" // no answer to the connection
	ReasonConnectFailed  Reason = "connect_failed"  // no route, and other errors of the network
	ReasonTLSFailed      Reason = "tls_failed"      // certificate expired, wrong or unknown, too many or too large; or no TLS 1.2
	ReasonTLSTimeout     Reason = "tls_timeout"     // the handshake did not end in time

	// With the request sent, or being sent.

	ReasonTimeout          Reason = "timeout"                 // no whole head of a response in time
	ReasonReset            Reason = "connection_reset"        // closed or reset before the head was whole
	ReasonHeadTooLarge     Reason = "response_head_too_large" // a head over 16 KiB or 128 fields
	ReasonResponseTooLarge Reason = "response_too_large"      // over 128 KiB; as a BodyReason the status stands
	ReasonProtocol         Reason = "protocol_error"          // what came is not HTTP/1
	ReasonNetwork          Reason = "network_error"           // other errors of the network

	// Of ours, for which the target can do nothing.

	ReasonNoFreeConns Reason = "no_free_connections" // all connections to the host are in use
	ReasonNoResources Reason = "no_resources"        // this machine is out of descriptors, ports or memory
	ReasonCanceled    Reason = "canceled"            // the context ended, or the client was closed

	// Of a response whose status is no success.

	ReasonRedirect    Reason = "redirect"     // 3xx: redirects are not followed
	ReasonStatus      Reason = "status"       // any other status that is no success
	ReasonFinalStatus Reason = "final_status" // one after which the webhook's owner wants no further attempt
	ReasonAborted     Reason = "aborted"      // the target asked for no further attempt (DirectiveHeader)
	ReasonGone        Reason = "gone"         // 410: the target is no more, and its webhook is disabled
	ReasonUnwanted    Reason = "unwanted"     // the target asked for its webhook to be disabled (DirectiveHeader)

	// Of no attempt.

	ReasonBreakerOpen Reason = "breaker_open" // the target failed so often that it is asked for nothing now
)

// DirectiveHeader is what a target may say in its answer: DirectiveAbort ends the
// delivery, unless the answer is a success; DirectiveDisable disables the webhook,
// and ends the delivery likewise.
const (
	DirectiveHeader  = "webhook-delivery"
	DirectiveAbort   = "abort"
	DirectiveDisable = "disable"
)

// Reasons returns all reasons.
func Reasons() []Reason {
	return []Reason{
		ReasonInvalidTarget, ReasonNoSecret, ReasonEgressDenied,
		ReasonDNSFailed, ReasonDNSTimeout, ReasonConnectRefused, ReasonConnectTimeout, ReasonConnectFailed, ReasonTLSFailed, ReasonTLSTimeout,
		ReasonTimeout, ReasonReset, ReasonHeadTooLarge, ReasonResponseTooLarge, ReasonProtocol, ReasonNetwork,
		ReasonNoFreeConns, ReasonNoResources, ReasonCanceled, ReasonRedirect, ReasonStatus, ReasonFinalStatus, ReasonAborted,
		ReasonGone, ReasonUnwanted, ReasonBreakerOpen,
	}
}

// reasonOf classifies the error of an attempt. Error texts hold the peer's
// bytes, so only the reason goes further.
func reasonOf(ctx context.Context, err error) Reason {
	var dial *dialError
	var target *schemas.TargetError
	switch {
	case ctx.Err() != nil, errors.Is(err, errClientClosed):
		return ReasonCanceled
	case errors.As(err, &dial):
		return dial.reason
	case errors.As(err, &target):
		return ReasonInvalidTarget
	case errors.Is(err, errNoSecret):
		return ReasonNoSecret
	case errors.Is(err, errNoFreeConns):
		return ReasonNoFreeConns
	}
	return readReason(err)
}

// readReason classifies an error of a connection that was made.
func readReason(err error) Reason {
	var op *net.OpError
	switch {
	case isTimeout(err):
		return ReasonTimeout
	case errors.Is(err, errReadLimit):
		return ReasonResponseTooLarge
	case errors.Is(err, bufio.ErrBufferFull), errors.Is(err, errHeadLimit):
		return ReasonHeadTooLarge
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return ReasonReset
	case errors.Is(err, errTooMuchTLS), errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"):
		return ReasonTLSFailed // crypto/tls's words for an alert, such as for a missing client certificate
	case exhausted(err):
		return ReasonNoResources
	case isErrno(err):
		return ReasonNetwork
	}
	return ReasonProtocol
}

func isErrno(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno)
}

// Action is what an attempt calls for.
type Action int

// The actions. Whether a failure was the schedule's last step, and so the
// delivery is dead, is the caller's to see.
const (
	Retry     Action = iota // failed: the schedule's next step
	Final                   // failed, and no further attempt is to be made
	Delivered               // the target took it
	Park                    // nothing was asked of the target: later again, not counted as an attempt
	Forget                  // broken off by us: whoever works the delivery next repeats it
)

// Verdict is what an attempt came to.
type Verdict struct {
	Action Action
	// Reason is the outcome's; empty for Delivered.
	Reason Reason
	// Wait is the least wait before the next attempt, as the target asked.
	Wait time.Duration
	// Health is what the attempt says of the target.
	Health Health
	// Disable says that the webhook is to be disabled.
	Disable bool
}

// Health is what an attempt says of its target.
type Health int

// The healths, from good to bad.
const (
	Unasked    Health = iota // nothing: it was not asked
	Well                     // it took the delivery
	Answering                // it refused this delivery, and may take another
	Failing                  // it fails, quickly
	Overloaded               // it asks for less, or takes too long to answer
)

// MaxRetryAfter caps what a target may ask for: the default schedule's longest step.
const MaxRetryAfter = 24 * time.Hour

// Answers is what a webhook's owner says of the statuses of its target. The zero
// value is the contract's: 200 is delivered, and every other status is tried again.
type Answers struct {
	Success2xx bool  // every status from 200 to 299 means delivered
	Final      []int // statuses after which no further attempt is made
}

// Judge classifies an attempt, by its error first.
func Judge(a *Attempt, answers Answers) Verdict {
	switch {
	case a.Reason == ReasonCanceled:
		return Verdict{Action: Forget, Reason: a.Reason}
	case a.Reason == ReasonNoFreeConns, a.Reason == ReasonNoResources:
		return Verdict{Action: Park, Reason: a.Reason}
	case a.Reason != "":
		return Verdict{Action: Retry, Reason: a.Reason, Health: a.Reason.health()}
	}
	v := answers.judge(a)
	if v.Action == Retry {
		v.Wait = min(a.RetryAfter, MaxRetryAfter)
	}
	if a.Directive == DirectiveDisable {
		v.Disable = true
		if v.Action != Delivered {
			v.Action, v.Reason, v.Wait = Final, ReasonUnwanted, 0
		}
	}
	return v
}

// judge classifies an attempt by its status.
func (answers Answers) judge(a *Attempt) Verdict {
	switch status := a.StatusCode; {
	case status == fasthttp.StatusOK, answers.Success2xx && status >= 200 && status < 300:
		return Verdict{Action: Delivered, Health: Well}
	case status == fasthttp.StatusGone:
		return Verdict{Action: Final, Reason: ReasonGone, Health: Answering, Disable: true}
	case a.Directive == DirectiveAbort:
		return Verdict{Action: Final, Reason: ReasonAborted, Health: statusHealth(status)}
	case slices.Contains(answers.Final, status):
		return Verdict{Action: Final, Reason: ReasonFinalStatus, Health: statusHealth(status)}
	case status >= 300 && status < 400:
		return Verdict{Action: Retry, Reason: ReasonRedirect, Health: Answering}
	default:
		return Verdict{Action: Retry, Reason: ReasonStatus, Health: statusHealth(status)}
	}
}

// statusHealth is that of a status which is no success.
func statusHealth(status int) Health {
	switch status {
	case fasthttp.StatusTooManyRequests, fasthttp.StatusBadGateway, fasthttp.StatusServiceUnavailable, fasthttp.StatusGatewayTimeout:
		return Overloaded
	}
	if status >= 500 {
		return Failing
	}
	return Answering
}

// health is that of a target of which no answer came.
func (r Reason) health() Health {
	switch r {
	case ReasonInvalidTarget, ReasonNoSecret:
		return Unasked
	case ReasonTimeout, ReasonConnectTimeout, ReasonTLSTimeout, ReasonDNSTimeout:
		return Overloaded
	default:
		return Failing
	}
}

// RetryAfter reads the header of that name (RFC 9110, section 10.2.3), seconds
// or a date, and returns the wait from now: at most MaxRetryAfter, 0 for what is
// past or neither.
func RetryAfter(value string, now time.Time) time.Duration {
	value = strings.Trim(value, " \t")
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.ParseInt(value, 10, 64)
		if err != nil || seconds > int64(MaxRetryAfter/time.Second) {
			return MaxRetryAfter // too many digits is a long wait, too
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := parseHTTPDate(value)
	if err != nil {
		return 0
	}
	return min(max(0, at.Sub(now)), MaxRetryAfter)
}

// parseHTTPDate reads the three forms of RFC 9110, section 5.6.7.
func parseHTTPDate(value string) (at time.Time, err error) {
	for _, layout := range []string{"Mon, 02 Jan 2006 15:04:05 GMT", time.RFC850, time.ANSIC} {
		if at, err = time.Parse(layout, value); err == nil {
			return at, nil
		}
	}
	return at, err
}
