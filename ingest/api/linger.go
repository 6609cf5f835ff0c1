package api

import (
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	// A client that is refused in the middle of its head or body must be let to read why.
	// Closing with its bytes unread makes the kernel send a reset, which takes the
	// answer along (RFC 9112, section 9.6). So the rest is read, within reason.
	lingerTime  = 2 * time.Second
	lingerBytes = 16 << 20
)

// lingeringListener gives its connections the lingering close.
type lingeringListener struct {
	net.Listener
}

// Accept returns a *lingeringConn.
func (l lingeringListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lingeringConn{Conn: c}, nil
}

type lingeringConn struct {
	net.Conn
	unread atomic.Bool // the client may still be sending what nobody will read
}

// linger has the connection of a request that was not read whole closed so.
func linger(h *fasthttp.RequestCtx) {
	if c, ok := h.Conn().(*lingeringConn); ok {
		c.unread.Store(true)
	}
}

// Close blocks for lingerTime at most if there is something unread.
func (c *lingeringConn) Close() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && c.unread.Load() && half.CloseWrite() == nil {
		if c.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
			_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes) // whatever ends it, the connection is closed
		}
	}
	return c.Conn.Close()
}
