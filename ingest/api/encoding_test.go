package api

import (
	"bytes"
	"errors"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/valyala/fasthttp"
)

func zipped(t *testing.T, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t *testing.T, body []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// longer is a byte longer.
func longer(body []byte) []byte { return append(bytes.Clone(body), 'x') }

func TestBody(t *testing.T) {
	const batch, structured = "application/json", "application/cloudevents+json"
	small, single, large := []byte(`{"a":1}`), bytes.Repeat([]byte("x"), maxSingleBytes), bytes.Repeat([]byte("x"), maxBatchBytes)
	bomb := bytes.Repeat(make([]byte, 1<<20), 256)
	for _, c := range []struct {
		name, path, contentType, encoding string
		body, want                        []byte
		status                            int
	}{
		{"none", pathEvents, batch, "", small, small, 0},
		{"identity", pathEvents, batch, "identity", small, small, 0},
		{"gzip", pathEvents, batch, "gzip", zipped(t, small), small, 0},
		{"its other name", pathEvents, batch, "X-GZIP", zipped(t, small), small, 0},
		{"zstd", pathEvents, batch, "zstd", zstded(t, small), small, 0},
		{"two members", pathEvents, batch, "gzip", append(zipped(t, small), zipped(t, small)...), bytes.Repeat(small, 2), 0},
		{"as large as one may be", pathWebhooks, batch, "gzip", zipped(t, single), single, 0},
		{"a byte more", pathWebhooks, batch, "gzip", zipped(t, longer(single)), nil, 413},
		{"a structured event", pathEvents, structured, "zstd", zstded(t, longer(single)), nil, 413},
		{"as large as a batch may be", pathEvents, batch, "zstd", zstded(t, large), large, 0},
		{"a byte more", pathEvents, batch, "zstd", zstded(t, longer(large)), nil, 413},
		{"a bomb", pathEvents, batch, "gzip", zipped(t, bomb), nil, 413},
		{"a bomb of zstd", pathEvents, batch, "zstd", zstded(t, bomb), nil, 413},
		{"a window of 64 MiB", pathEvents, batch, "zstd", zstded(t, bomb, zstd.WithWindowSize(64<<20)), nil, 413},
		{"cut", pathEvents, batch, "gzip", zipped(t, small)[:12], nil, 400},
		{"cut within zstd", pathEvents, batch, "zstd", zstded(t, small)[:8], nil, 400},
		{"not what it says", pathEvents, batch, "gzip", small, nil, 400},
		{"not what it says", pathEvents, batch, "zstd", small, nil, 400},
		{"another", pathEvents, batch, "br", small, nil, 415},
		{"two", pathEvents, batch, "gzip, zstd", small, nil, 415},
	} {
		k := &call{http: &fasthttp.RequestCtx{}}
		k.http.Request.SetRequestURI(c.path)
		k.http.Request.Header.SetContentType(c.contentType)
		if c.encoding != "" {
			k.http.Request.Header.SetContentEncoding(c.encoding)
		}
		k.http.Request.SetBody(c.body)
		got, err := k.body()
		status := 0
		if refused, ok := errors.AsType[*requestError](err); ok {
			status = refused.status
		} else if err != nil {
			t.Fatal(err)
		}
		if status != c.status || !bytes.Equal(got, c.want) {
			t.Errorf("%s (%s): got %d and %d bytes, want %d and %d", c.name, c.encoding, status, len(got), c.status, len(c.want))
		}
		if accepts := string(k.http.Response.Header.Peek("Accept-Encoding")); (status == 415) != (accepts == encodings) {
			t.Errorf("%s: %d with Accept-Encoding %q", c.name, status, accepts)
		}
	}
}
