package api

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"mime"
	"net"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/schemas"
)

const (
	// contentTypeNDJSON asks a list for all that it has: one JSON document a line.
	contentTypeNDJSON = "application/x-ndjson"
	// exportBuffer is handed on at once.
	exportBuffer = 64 << 10
)

// listed is a list of the audit: by pages, or all of it.
type listed[T any] struct {
	page  func(ctx context.Context, after audit.Place, limit int) ([]T, error)
	all   func(ctx context.Context) (audit.Rows[T], error)
	place func(row *T) audit.Place
	// hide takes out what c's key may not see; nil: nothing.
	hide func(row *T)
}

// serveList answers with a page of a list, or with all of it to who asks for NDJSON.
func serveList[T any](ctx context.Context, c *call, p *parameters, l listed[T]) error {
	if l.hide == nil {
		l.hide = func(*T) {}
	}
	if p.err == nil && asksForNDJSON(c.http) {
		for _, name := range []string{"limit", "cursor"} {
			if _, given := p.values[name]; given {
				p.refuse(invalidParameter(name, "left out of an export, which has no pages"))
			}
		}
	}
	if p.err != nil {
		return p.err
	}
	if asksForNDJSON(c.http) {
		return serveExport(ctx, c, l)
	}
	question := p.question(c)
	after, err := placeAt(p.cursor, question)
	if err != nil {
		return err
	}
	// One more says whether there is another page.
	found, err := l.page(ctx, after, p.limit+1)
	if err != nil {
		return err
	}
	page := list[T]{Data: found[:min(p.limit, len(found))]}
	if page.Data == nil {
		page.Data = []T{}
	}
	if len(found) > p.limit {
		page.Next = cursorAt(l.place(&page.Data[p.limit-1]), question)
	}
	for i := range page.Data {
		l.hide(&page.Data[i])
	}
	return c.answer(fasthttp.StatusOK, page)
}

// asksForNDJSON reports whether the Accept header names NDJSON.
func asksForNDJSON(h *fasthttp.RequestCtx) bool {
	for part := range strings.SplitSeq(string(h.Request.Header.Peek(fasthttp.HeaderAccept)), ",") {
		if name, _, err := mime.ParseMediaType(part); err == nil && name == contentTypeNDJSON {
			return true
		}
	}
	return false
}

// serveExport answers with all rows of a list, one a line. Until the first can be
// told, refusals are those of any request. After that an export that cannot be
// ended says so in its last line, {"error": <problem>}, and in that the connection
// is closed without the chunk that ends an answer (RFC 9112, section 7.1).
func serveExport[T any](ctx context.Context, c *call, l listed[T]) error {
	rows, err := l.all(ctx)
	if err != nil {
		return err
	}
	// It outlives the request's time, and ends with the server, or when nobody reads.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	reader, writer := io.Pipe()
	stopping, id := c.http.Done(), c.requestID()
	problem := func(err error) schemas.Problem { return problemAt(id, err) }
	go func() {
		defer cancel()
		_ = writer.CloseWithError(writeRows(running, writer, rows, l.hide, problem)) // nil is io.EOF: the end
	}()
	go func() {
		defer cancel()
		select {
		case <-stopping:
		case <-running.Done():
		}
	}()
	c.http.SetContentType(contentTypeNDJSON)
	c.http.SetBodyStream(&exportBody{reader, c.http.Conn(), cancel}, -1)
	return nil
}

// writeRows writes a line for each row, and one for what ended them too early.
func writeRows[T any](ctx context.Context, w io.Writer, rows audit.Rows[T], hide func(*T), problem func(error) schemas.Problem) error {
	lines := bufio.NewWriterSize(w, exportBuffer)
	enc := json.NewEncoder(lines)
	enc.SetEscapeHTML(false)
	failed := rows.Each(ctx, func(row *T) error {
		hide(row)
		return enc.Encode(row)
	})
	if failed != nil {
		// Where it was the writing that failed there is nobody to be told, and this fails too.
		_ = enc.Encode(map[string]schemas.Problem{"error": problem(failed)})
	}
	if err := lines.Flush(); err != nil {
		return err
	}
	return failed
}

// exportBody is read by fasthttp, which then writes to the connection: for that
// the client has writeTimeout each time, instead of once for the whole answer.
type exportBody struct {
	io.Reader

	conn   net.Conn
	cancel context.CancelFunc
}

// Read reads what the rows have written.
func (b *exportBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if deadline := b.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err == nil {
		err = deadline
	}
	return n, err
}

// Close ends the export, also one that is not read to its end.
func (b *exportBody) Close() error {
	b.cancel()
	return b.Reader.(*io.PipeReader).Close() //nolint:forcetypeassert // serveExport made it
}
