package receiver

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strconv"
)

// Seen is a request as the handler of RequestsHandler tells of it.
type Seen struct {
	Path      string `json:"path"`
	MessageID string `json:"message_id"`
	// At is when the request was read whole, in microseconds since 1970: a number
	// that JavaScript holds exactly.
	At int64 `json:"at_us"`
	// Status is what it was answered with; 0 for a connection closed without an answer.
	Status int `json:"status"`
	// Body is empty in a light receiver.
	Body string `json:"body,omitempty"`
}

// RequestsHandler tells another process what came in, so that a script or a bench
// can compare it with what was sent:
//
//	GET /requests              every request, path by path, a JSON object a line
//	GET /requests?path=/a      those of one path, in the order in which they came
//	GET /requests?path=/a&from=7   … but for the first seven
//	DELETE /requests           forgets them, which a long run's memory needs
//	GET /total                 how many there were, of all paths
//	GET /readyz                200
func (r *Receiver) RequestsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /requests", r.serveRequests)
	mux.HandleFunc("DELETE /requests", r.serveForget)
	mux.HandleFunc("GET /total", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(strconv.AppendInt(nil, int64(r.Total()), 10)) // the asker's loss
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	return mux
}

func (r *Receiver) serveRequests(w http.ResponseWriter, asked *http.Request) {
	query := asked.URL.Query()
	paths, from := []string{query.Get("path")}, 0
	if text := query.Get("from"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			http.Error(w, "from: want a number of requests to pass over, got "+strconv.Quote(text), http.StatusBadRequest)
			return
		}
		from = n
	}
	if !query.Has("path") {
		paths = r.Paths()
	}
	w.Header().Set("Content-Type", "application/jsonl")
	buffer := bufio.NewWriter(w)
	lines := json.NewEncoder(buffer)
	for _, path := range paths {
		requests := r.Requests(path)
		for _, req := range requests[min(from, len(requests)):] {
			_ = lines.Encode(req.seen()) // the asker's loss
		}
	}
	_ = buffer.Flush()
}

func (r *Request) seen() Seen {
	s := Seen{Path: r.Path, MessageID: r.MessageID, At: r.At.UnixMicro(), Status: r.Answer.Status, Body: string(r.Body)}
	switch {
	case r.Answer.Drop:
		s.Status = 0
	case s.Status == 0:
		s.Status = http.StatusOK
	}
	return s
}
