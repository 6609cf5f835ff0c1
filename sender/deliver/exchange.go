package deliver

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/schemas"
)

// Memory of an attempt: 16 KiB each for reader, head and kept body, 4 KiB each for
// writer and spill, at most 32 KiB copied out, TLS's records of 16 KiB each way:
// 120 KiB, under the 128 KiB allowed.
const (
	// maxHead is the reader's size, and so the longest head of a response.
	maxHead    = 16 << 10
	maxKept    = schemas.MaxResponseBody
	writerSize = 4 << 10
	spillSize  = 4 << 10
	// maxRead bounds all bytes read in an attempt, framing included. What a target
	// answers beyond it interests nobody; its connection is given up.
	maxRead = 128 << 10
	// maxInterim 1xx heads may come before the final one.
	maxInterim = 8
)

var (
	errReadLimit = errors.New("the response is over the limit")
	errNotHTTP   = errors.New("the response is not HTTP")
	errInterim   = errors.New("too many 1xx responses")
)

// exchange is the working memory of one request and its response, reused.
type exchange struct {
	req   fasthttp.Request
	resp  fasthttp.Response
	br    *bufio.Reader
	bw    *bufio.Writer
	value []byte // a header's value while it is made
	head  []byte // the final head; at most maxHead
	kept  [maxKept]byte
	spill [spillSize]byte

	conn        *conn
	read        int       // bytes of the response
	firstByteAt time.Time // zero while read is 0
	readErr     error     // the connection's own, which fasthttp's wrapping hides
	parsing     bool      // the head is whole: who asks for more has not understood it
	keepAlive   bool
}

func newExchange() *exchange {
	x := &exchange{value: make([]byte, 0, 256)}
	x.br = bufio.NewReaderSize(x, maxHead)
	x.bw = bufio.NewWriterSize(nil, writerSize)
	return x
}

// reset lets go of everything that belongs to the attempt.
func (x *exchange) reset() {
	x.req.Reset()
	x.resp.Reset()
	x.bw.Reset(nil)
	x.conn = nil
}

// prepare makes the request. fasthttp's URI parser takes no part: it would mend
// what ParseTarget refuses. So host and path are set as they are.
func (x *exchange) prepare(to *endpoint, r *Request, userAgent string, now time.Time) {
	h := &x.req.Header
	h.DisableNormalizing()
	h.SetMethod(fasthttp.MethodPost)
	h.SetHost(to.Authority)
	h.SetRequestURI(to.Path)
	h.SetUserAgent(userAgent)
	h.SetContentType(cmp.Or(r.ContentType, schemas.ContentTypeJSON))
	h.Set(schemas.HeaderWebhookID, r.MessageID)
	x.value = strconv.AppendInt(x.value[:0], now.Unix(), 10)
	h.SetBytesV(schemas.HeaderWebhookTimestamp, x.value)
	x.value = appendSignatures(x.value[:0], r, now.Unix())
	h.SetBytesV(schemas.HeaderWebhookSignature, x.value)
	x.value = strconv.AppendInt(x.value[:0], r.Sequence, 10)
	h.SetBytesV(schemas.HeaderSequence, x.value)
	for _, own := range r.Headers {
		h.Set(own.Name, own.Value)
	}
	if validTraceparent(r.Traceparent) {
		h.Set("traceparent", r.Traceparent)
	}
	x.req.SetBodyRaw(r.Body)
}

// appendSignatures appends one signature for each secret and key, with spaces between them.
func appendSignatures(dst []byte, r *Request, unixSeconds int64) []byte {
	for _, secret := range r.Secrets {
		dst = schemas.AppendSignature(dst, secret, r.MessageID, unixSeconds, r.Body)
		dst = append(dst, ' ')
	}
	for _, key := range r.Keys {
		dst = schemas.AppendSignatureV1a(dst, key, r.MessageID, unixSeconds, r.Body)
		dst = append(dst, ' ')
	}
	return bytes.TrimSuffix(dst, []byte{' '})
}

// run sends the request on cn and reads the answer into a. An error means that
// no status can be trusted; again, that cn may be used again.
func (x *exchange) run(ctx context.Context, cn *conn, deadline time.Time, a *Attempt) (again bool, err error) {
	x.conn, x.read, x.readErr, x.firstByteAt, x.keepAlive = cn, 0, nil, time.Time{}, false
	if err := cn.SetDeadline(deadline); err != nil {
		return false, err
	}
	// After the deadline is set, not before: a context that is done by now must have the last word.
	stop := context.AfterFunc(ctx, func() { _ = cn.SetDeadline(time.Unix(1, 0)) })
	err = x.sendAndRead(a)
	if a.BodyReason == ReasonTimeout && ctx.Err() != nil {
		a.BodyReason = ReasonCanceled
	}
	// If the context's function has begun it may still spoil the deadline of whoever has the connection next.
	return stop() && x.keepAlive, err
}

func (x *exchange) sendAndRead(a *Attempt) error {
	x.bw.Reset(x.conn)
	x.br.Reset(x)
	if err := x.req.Write(x.bw); err != nil {
		return err
	}
	if err := x.bw.Flush(); err != nil {
		return err
	}
	writtenAt := time.Now()
	err := x.readHead()
	if x.read > 0 {
		a.FirstByte = max(0, x.firstByteAt.Sub(writtenAt))
	}
	if err != nil {
		return err
	}
	a.StatusCode = x.resp.StatusCode()
	if value := x.resp.Header.Peek(fasthttp.HeaderRetryAfter); len(value) > 0 {
		a.RetryAfter = RetryAfter(string(value), time.Now())
	}
	switch value := x.resp.Header.Peek(DirectiveHeader); strings.ToLower(string(bytes.TrimSpace(value))) {
	case DirectiveAbort:
		a.Directive = DirectiveAbort
	case DirectiveDisable:
		a.Directive = DirectiveDisable
	}
	body := x.readBody(a)
	kept := make([]byte, len(x.head)+len(body))
	n := copy(kept, x.head)
	copy(kept[n:], body)
	a.ResponseHead, a.ResponseBody = kept[:n:n], kept[n:]
	// Bytes beyond the response belong to nothing that was asked.
	x.keepAlive = a.BodyReason == "" && a.StatusCode >= 200 && !x.resp.ConnectionClose() && x.br.Buffered() == 0
	return nil
}

// readHead reads up to the final head, past interim ones.
func (x *exchange) readHead() error {
	for range maxInterim + 1 {
		if err := x.bufferHead(); err != nil {
			return err
		}
		x.parsing = true
		err := x.resp.Header.Read(x.br)
		x.parsing = false
		if err != nil {
			return errNotHTTP // the head was whole, so it is the parser's own; its text holds the peer's bytes
		}
		if _, rest, _ := bytes.Cut(x.head, []byte(" ")); bytes.HasPrefix(bytes.TrimLeft(rest, " "), []byte("0")) {
			return errNotHTTP // the parser takes status 0xx, and says 200 for 000
		}
		if status := x.resp.StatusCode(); status >= 200 || status == fasthttp.StatusSwitchingProtocols {
			return nil
		}
	}
	return errInterim
}

// bufferHead waits until a head is whole in the reader, and copies it to x.head.
func (x *exchange) bufferHead() error {
	for {
		buffered, err := x.br.Peek(x.br.Buffered())
		if err != nil {
			return err
		}
		head := bytes.TrimLeft(buffered, "\r\n") // as the parser does
		if end := headEnd(head); end > 0 {
			x.head = append(x.head[:0], head[:end]...)
			return nil
		}
		const version = "HTTP/1."
		if n := min(len(head), len(version)); string(head[:n]) != version[:n] {
			return errNotHTTP // told at once: another protocol's server may wait for us to speak
		}
		if _, err := x.br.Peek(len(buffered) + 1); err != nil {
			return err
		}
	}
}

// headEnd returns the length of the head at the start of b with its empty line, 0 if it is not whole.
func headEnd(b []byte) int {
	end := 0
	if i := bytes.Index(b, []byte("\n\r\n")); i >= 0 {
		end = i + 3
	}
	if i := bytes.Index(b, []byte("\n\n")); i >= 0 && (end == 0 || i+2 < end) {
		end = i + 2
	}
	return end
}

// readBody reads the body to its end, or as far as time and limit allow, and
// returns its beginning, valid until the next exchange.
func (x *exchange) readBody(a *Attempt) []byte {
	switch a.StatusCode {
	case fasthttp.StatusNoContent, fasthttp.StatusNotModified, fasthttp.StatusSwitchingProtocols:
		return nil
	}
	x.resp.StreamBody = true // else a declared length is allocated at once
	if err := x.resp.ReadBody(x.br, 0); err != nil {
		a.BodyReason = ReasonProtocol
		return nil
	}
	stream := x.resp.BodyStream()
	kept := 0
	for {
		into := x.kept[kept:]
		if len(into) == 0 {
			into = x.spill[:]
		}
		n, err := stream.Read(into)
		a.ResponseBytes += int64(n)
		kept = min(kept+n, maxKept)
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			a.BodyReason = x.bodyReason(err)
		}
		break
	}
	declared := int64(x.resp.Header.ContentLength())
	if a.BodyReason == ReasonResponseTooLarge && declared > a.ResponseBytes {
		a.ResponseBytes = declared
	}
	_ = x.resp.CloseBodyStream() // gives the stream back to its pool; it has no error to tell
	return x.kept[:kept]
}

func (x *exchange) bodyReason(err error) Reason {
	if x.readErr != nil {
		err = x.readErr
	}
	return readReason(err)
}

// Read reads from the connection, for the buffered reader alone: within the
// attempt's limit, and noting the first byte.
func (x *exchange) Read(p []byte) (int, error) {
	if x.parsing {
		return 0, errNotHTTP
	}
	if x.read >= maxRead {
		x.readErr = errReadLimit
		return 0, errReadLimit
	}
	n, err := x.conn.Read(p[:min(len(p), maxRead-x.read)])
	if x.read == 0 && n > 0 {
		x.firstByteAt = time.Now()
	}
	x.read += n
	if err != nil {
		x.readErr = err
	}
	return n, err
}

// stale reports whether err may come of a connection that was closed while idle.
func (x *exchange) stale(err error) bool { return x.read == 0 && !isTimeout(err) }

// validTraceparent checks the form of W3C Trace Context, section 3.2.2, version
// 00: it comes from producers, and stands in a header.
func validTraceparent(s string) bool {
	if len(s) != 55 || s[:3] != "00-" || s[35] != '-' || s[52] != '-' {
		return false
	}
	for i := 3; i < len(s); i++ {
		if c := s[i]; i != 35 && i != 52 && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
