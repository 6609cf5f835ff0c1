package receive

import (
	"maps"
	"net/http"
)

// maxAnswer is how much of an answer is sent on, in bytes: what the audit keeps of it.
const maxAnswer = 16 << 10

// answer holds what a handler answers until it has returned. Only the handler's
// goroutine uses it until then.
type answer struct {
	header http.Header
	status int // 0: nothing was written
	body   []byte
}

func newAnswer() *answer { return &answer{header: http.Header{}} }

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter: the first one counts, and the informational do not.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= http.StatusOK {
		a.status = status
	}
}

// Write implements http.ResponseWriter. It takes everything and keeps the beginning.
func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	a.body = append(a.body, p[:min(len(p), maxAnswer-len(a.body))]...)
	return len(p), nil
}

// well tells whether the message was handled. Nothing written is net/http's 200, but
// not once its time was over: then a handler may have returned for that reason alone.
func (a *answer) well(late bool) bool {
	if a.status == 0 {
		return !late
	}
	return a.status < http.StatusMultipleChoices
}

// send answers: any 2xx as 200, since a sender takes nothing else for delivered by default.
func (a *answer) send(w http.ResponseWriter, well bool) {
	status := a.status
	switch {
	case well:
		status = http.StatusOK
	case status == 0:
		status = http.StatusServiceUnavailable
	}
	a.header.Del("Content-Length") // of what may have been cut
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(status)
	_, _ = w.Write(a.body) // the sender's loss: it asks again
}
