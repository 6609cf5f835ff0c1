package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

// maxAnswer bounds an answer read: a page of 1,000 keys has less than 1 MiB.
const maxAnswer = 16 << 20

// api speaks to the REST listener.
type api struct {
	server string
	key    string
}

func (a *api) Register(s *process.Settings) {
	s.String(&a.server, "server", "http://127.0.0.1:8080", "the REST listener")
	s.Secret(&a.key, "admin-key", "", "the admin key, or an API key with the scope it takes (@FILE reads it from a file)")
	s.Required("admin-key")
	s.Check(func() error {
		u, err := url.Parse(a.server)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return s.Invalid("server", "a URL such as http://127.0.0.1:8080")
		}
		return nil
	})
}

// refusedError is an answer other than success.
type refusedError struct {
	doing   string
	problem schemas.Problem
	asJSON  bool
}

// Error tells the problem, each of its faults with its place on a line.
func (e *refusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: refused: %d %s", e.doing, e.problem.Status, e.problem.Title)
	if e.problem.Detail != "" {
		b.WriteString(": " + e.problem.Detail)
	}
	for _, field := range e.problem.Errors {
		fmt.Fprintf(&b, "\n  %s: %s (%s)", field.Pointer, field.Detail, field.Code)
	}
	return b.String()
}

// call sends a request and reads its answer into answer, which may be nil.
// The error is *refusedError where the server refuses.
func (a *api) call(ctx context.Context, t *terminal, doing, method, path string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(a.server, "/")+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	req.Header.Set("Authorization", "Bearer "+a.key)
	req.Header.Set("User-Agent", "postrider/"+process.Version())
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end below
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s: reading answer: %w", doing, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return refusal(t, doing, resp, text)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("%s: reading answer of %s: %w", doing, a.server, err)
	}
	return nil
}

// refusal reads a problem; something between us and the server may answer otherwise.
func refusal(t *terminal, doing string, resp *http.Response, text []byte) error {
	e := &refusedError{doing: doing, asJSON: t.asJSON}
	isProblem := strings.HasPrefix(resp.Header.Get("Content-Type"), schemas.ProblemContentType)
	if !isProblem || json.Unmarshal(text, &e.problem) != nil {
		e.problem = schemas.Problem{
			Type: "about:blank", Title: http.StatusText(resp.StatusCode), Status: resp.StatusCode,
			Detail: fmt.Sprintf("the answer is no problem detail of Postrider's: %.200q", text),
		}
	}
	return e
}

// page is a page of a list.
type page[T any] struct {
	Data []T     `json:"data"`
	Next *string `json:"next"`
}

// list reads every page of a list.
func list[T any](ctx context.Context, a *api, t *terminal, doing, path string, query url.Values) ([]T, error) {
	query.Set("limit", "1000")
	all := []T{}
	for {
		var next page[T]
		if err := a.call(ctx, t, doing, http.MethodGet, path+"?"+query.Encode(), nil, &next); err != nil {
			return nil, err
		}
		all = append(all, next.Data...)
		if next.Next == nil {
			return all, nil
		}
		if len(next.Data) == 0 {
			return nil, errors.New(doing + ": an empty page names a next one")
		}
		query.Set("cursor", *next.Next)
	}
}
