package api

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/valyala/fasthttp"

	"github.com/postrider/postrider/schemas"
)

// encodings are the content encodings that bodies may have, besides none.
const encodings = "gzip, zstd"

// maxZstdWindow bounds what a zstd frame may have its reader hold: 8 MiB, as
// RFC 8878 (section 3.1.1.1.2) and RFC 9659 say that all must bear.
const maxZstdWindow = 8 << 20

// body returns a copy of the body, its content encoding taken off: publish and the
// registry keep it past the answer, when fasthttp has given its memory to another
// request. What it is then has the same limits as one that came as it is.
func (c *call) body() ([]byte, error) {
	h := &c.http.Request.Header
	raw := c.http.PostBody()
	var (
		plain io.Reader
		err   error
	)
	switch strings.ToLower(string(h.ContentEncoding())) {
	case "", "identity":
		return bytes.Clone(raw), nil
	case "gzip", "x-gzip":
		plain, err = gzip.NewReader(bytes.NewReader(raw))
	case "zstd":
		var frames *zstd.Decoder
		frames, err = zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err == nil {
			defer frames.Close()
			plain = frames
		}
	default:
		c.http.Response.Header.Set(fasthttp.HeaderAcceptEncoding, encodings)
		return nil, unsupportedContent("the content encoding of a body is one of " + encodings + ", or none")
	}
	if err != nil {
		return nil, undecodable()
	}
	limit := maxSingleBytes
	if most := limits(h).MaxRequestBodySize; most > 0 {
		limit = most
	}
	body, err := io.ReadAll(io.LimitReader(plain, int64(limit)+1))
	switch {
	case len(body) > limit, errors.Is(err, zstd.ErrWindowSizeExceeded):
		return nil, tooLarge()
	case err != nil:
		return nil, undecodable()
	}
	return body, nil
}

func undecodable() *requestError {
	return &requestError{
		status: fasthttp.StatusBadRequest, code: schemas.CodeInvalidValue, detail: "the body is not of the content encoding that it says",
	}
}
