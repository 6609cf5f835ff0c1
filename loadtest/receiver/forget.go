package receiver

import "net/http"

// Forget drops the requests that came so far; Total goes on counting.
func (r *Receiver) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.requests)
}

func (r *Receiver) serveForget(w http.ResponseWriter, _ *http.Request) {
	r.Forget()
	w.WriteHeader(http.StatusOK)
}
