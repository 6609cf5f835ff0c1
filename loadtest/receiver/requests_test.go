package receiver

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestRequestsHandler(t *testing.T) {
	r := Start(t, Config{})
	r.Answers("/a", Status(500), Answer{})
	post(t, http.DefaultClient, r.URL("/a"), `{"n":1}`)
	post(t, http.DefaultClient, r.URL("/a"), `{"n":2}`)
	post(t, http.DefaultClient, r.URL("/b"), `{"n":3}`)
	for _, test := range []struct {
		path   string
		status int
		want   []string // a piece of each line
	}{
		{"/requests?path=/a", 200, []string{`"status":500,"body":"{\"n\":1}"`, `"status":200,"body":"{\"n\":2}"`}},
		{"/requests?path=/a&from=1", 200, []string{`{\"n\":2}`}},
		{"/requests?path=/a&from=9", 200, nil},
		{"/requests?path=/none", 200, nil},
		{"/requests", 200, []string{`"path":"/a"`, `"path":"/a"`, `"path":"/b"`}},
		{"/requests?path=/a&from=-1", 400, []string{`got "-1"`}},
		{"/total", 200, []string{"3"}},
		{"/readyz", 200, nil},
	} {
		answer := httptest.NewRecorder()
		r.RequestsHandler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, test.path, nil))
		lines := strings.Split(strings.TrimSuffix(answer.Body.String(), "\n"), "\n")
		if answer.Body.Len() == 0 {
			lines = nil
		}
		if answer.Code != test.status || len(lines) != len(test.want) {
			t.Errorf("%s: got %d %q, want %d and %d lines", test.path, answer.Code, lines, test.status, len(test.want))
			continue
		}
		for i, want := range test.want {
			if !strings.Contains(lines[i], want) {
				t.Errorf("%s: line %d: got %s, want %s in it", test.path, i, lines[i], want)
			}
		}
	}
}

func TestDroppedRequestsHaveNoStatus(t *testing.T) {
	dropped := Request{Answer: Answer{Drop: true}}
	if got := dropped.seen().Status; got != 0 {
		t.Errorf("status: got %d, want 0", got)
	}
}
