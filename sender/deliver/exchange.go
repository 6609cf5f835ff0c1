package deliver

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/schemas"
)

// Memory of an attempt: 16 KiB for the reader, as much for a head as fasthttp parses
// it, 4 KiB each for writer and spill, at most 32 KiB for the response that is kept,
// some 40 KiB for TLS: under the 128 KiB allowed. It is measured in loadtest/hostile.
const (
	// maxHead is the reader's size, and so the longest head of a response.
	maxHead = 16 << 10
	// maxFields in a head. Each costs fasthttp 80 bytes and more, be it of four.
	maxFields  = 128
	maxKept    = schemas.MaxResponseBody
	writerSize = 4 << 10
	spillSize  = 4 << 10
	// minBodyRead and firstBodyRead are room for a body of which nothing was read yet:
	// beside the head, and once there was none left there.
	minBodyRead   = 512
	firstBodyRead = 4 << 10
	// maxRead bounds all bytes read in an attempt, framing included. What a target
	// answers beyond it interests nobody; its connection is given up.
	maxRead = 128 << 10
	// maxInterim 1xx heads may come before the final one.
	maxInterim = 8
)

var (
	errReadLimit = errors.New("the response is over the limit")
	errHeadLimit = errors.New("the response's head is over the limit")
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
	kept  []byte // the final head, at most maxHead, and the body's first maxKept: the attempt's, never used again
	body  io.LimitedReader
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
	x.conn, x.kept = nil, nil
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
	length, last := x.resp.Header.ContentLength(), x.resp.ConnectionClose()
	n := len(x.kept)
	if n > writerSize {
		x.resp = fasthttp.Response{} // it holds as much again, while the body may take its time
	}
	x.readBody(a, length)
	a.ResponseHead, a.ResponseBody = x.kept[:n:n], x.kept[n:]
	// Bytes beyond the response belong to nothing that was asked.
	x.keepAlive = a.BodyReason == "" && a.StatusCode >= 200 && !last && x.br.Buffered() == 0
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
		if _, rest, _ := bytes.Cut(x.kept, []byte(" ")); bytes.HasPrefix(bytes.TrimLeft(rest, " "), []byte("0")) {
			return errNotHTTP // the parser takes status 0xx, and says 200 for 000
		}
		if status := x.resp.StatusCode(); status >= 200 || status == fasthttp.StatusSwitchingProtocols {
			return nil
		}
	}
	return errInterim
}

// bufferHead waits until a head is whole in the reader, and copies it to x.kept.
func (x *exchange) bufferHead() error {
	for {
		buffered, err := x.br.Peek(x.br.Buffered())
		if err != nil {
			return err
		}
		head := bytes.TrimLeft(buffered, "\r\n") // as the parser does
		if end := headEnd(head); end > 0 {
			if bytes.Count(head[:end], []byte("\n")) > maxFields+2 { // the status line, and the empty one
				return errHeadLimit
			}
			if x.kept == nil {
				x.kept = make([]byte, 0, end+minBodyRead) // with room for a short body
			}
			x.kept = append(x.kept[:0], head[:end]...)
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
// appends its beginning to x.kept. Length is as fasthttp has it: -1 is chunked, and
// less is a body until the connection's end. Its own readers take no part: they
// allocate a declared length, or keep every field of a trailer.
func (x *exchange) readBody(a *Attempt, length int) {
	switch a.StatusCode {
	case fasthttp.StatusNoContent, fasthttp.StatusNotModified, fasthttp.StatusSwitchingProtocols:
		return
	}
	var body io.Reader = x.br
	switch {
	case length >= 0:
		x.body = io.LimitedReader{R: x.br, N: int64(length)}
		body = &x.body
	case length == -1:
		body = httputil.NewChunkedReader(x.br)
	}
	err := x.keep(body, a, length)
	switch {
	case !errors.Is(err, io.EOF):
	case length == -1:
		err = x.skipTrailer()
	case int64(length) > a.ResponseBytes:
		err = io.ErrUnexpectedEOF
	default:
		err = nil
	}
	if err == nil {
		return
	}
	a.BodyReason = x.bodyReason(err)
	if a.BodyReason == ReasonResponseTooLarge {
		a.ResponseBytes = max(a.ResponseBytes, int64(length))
	}
}

// keep reads to an error, which io.EOF is too, and keeps the first maxKept bytes.
func (x *exchange) keep(body io.Reader, a *Attempt, length int) error {
	for room := maxKept; ; {
		into := x.spill[:]
		if room > 0 {
			x.makeRoom(room, length)
			into = x.kept[len(x.kept):min(cap(x.kept), len(x.kept)+room)]
		}
		n, err := body.Read(into)
		a.ResponseBytes += int64(n)
		if room > 0 {
			x.kept, room = x.kept[:len(x.kept)+n], room-n
		}
		if err != nil {
			return err
		}
	}
}

// makeRoom for more of a body in x.kept: all that is to come of it where the length
// is known, else a first 4 KiB, then the most there may be.
func (x *exchange) makeRoom(room, length int) {
	read := maxKept - room
	if len(x.kept) < cap(x.kept) || read == length {
		return
	}
	switch {
	case length > read:
		room = min(room, length-read)
	case read < firstBodyRead:
		room = firstBodyRead
	}
	x.kept = append(make([]byte, 0, len(x.kept)+room), x.kept...)
}

// skipTrailer reads to the empty line that ends a chunked body.
func (x *exchange) skipTrailer() error {
	for {
		line, err := x.br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return errNotHTTP // a line as long as a head may be
		}
		if err != nil {
			return err
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			return nil
		}
	}
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
