package receiver

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestForget(t *testing.T) {
	r := Start(t, Config{})
	post(t, http.DefaultClient, r.URL("/a"), "1")
	answer := httptest.NewRecorder()
	r.RequestsHandler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodDelete, "/requests", nil))
	post(t, http.DefaultClient, r.URL("/a"), "2")
	got := r.Requests("/a")
	if answer.Code != http.StatusOK || len(got) != 1 || string(got[0].Body) != "2" || r.Total() != 2 {
		t.Errorf("got %d, %+v and %d in all, want the second request of two", answer.Code, got, r.Total())
	}
}
