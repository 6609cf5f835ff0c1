package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/postrider/postrider/loadtest/ledger"
	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

// try makes a REST call with the admin key.
func (w *world) try(ctx context.Context, client *http.Client, method, path, body string, headers ...string) (status int, answer []byte, err error) {
	return tryAt(ctx, client, w.ingest, method, path, body, headers...)
}

// tryAt is try, of any of the processes of ingest.
func tryAt(ctx context.Context, client *http.Client, ingest *pipeline.Service, method, path, body string, headers ...string) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+ingest.Listen+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, fmt.Errorf("making request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+adminKey)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("calling %s %s: %w", method, path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, bytes.Clone(answer), err
}

// call makes a REST call that must be answered with a status, and is made again
// while there is no answer, or 503: it must do no harm to be done twice.
func (w *world) call(status int, method, path, body string, headers ...string) []byte {
	w.t.Helper()
	var answer []byte
	pipeline.Wait(w.t, soon, method+" "+path, func() error {
		got, text, err := w.try(w.t.Context(), http.DefaultClient, method, path, body, headers...)
		switch {
		case err != nil:
			return err
		case got == http.StatusServiceUnavailable && status != got:
			return fmt.Errorf("got %d %s, want %d", got, text, status)
		case got != status:
			w.t.Fatalf("%s %s %s: got %d %s, want %d", method, path, body, got, text, status)
		}
		answer = text
		return nil
	})
	return answer
}

// subscribe creates a webhook of an organization at a path of the targets, with
// further members of the request if more is not empty: `,"name":value`.
func (w *world) subscribe(organization, path, more string) ledger.Webhook {
	w.t.Helper()
	return w.subscribeURL(organization, path, w.targets.URL(path), more)
}

// subscribeURL is subscribe for a target elsewhere, which is to tell the ledger of
// requests by the path.
func (w *world) subscribeURL(organization, path, url, more string) ledger.Webhook {
	w.t.Helper()
	body := fmt.Sprintf(`{"organization":%q,"active":true,"url":%q,"events":"*"%s}`, organization, url, more)
	hook := ledger.Webhook{Organization: organization, Path: path}
	if err := json.Unmarshal(w.call(http.StatusCreated, http.MethodPost, "/v1/webhooks", body), &hook); err != nil {
		w.t.Fatal(err)
	}
	w.ledger.Subscribe(hook)
	return hook
}

// trySubscribe is subscribe, for several goroutines at once. Where ingest cannot say
// whether the webhook was made, it is deleted if it was, and made again.
func (w *world) trySubscribe(client *http.Client, organization, path, more string) (hook ledger.Webhook, err error) {
	for range 10 {
		if hook, err = w.subscribeOnce(client, organization, path, more); !errors.Is(err, errUnavailable) {
			return hook, err
		}
		if err := w.deleteAt(client, organization, w.targets.URL(path)); err != nil {
			return hook, err
		}
	}
	return hook, err
}

// subscribeOnce returns errUnavailable where there may be a webhook that the ledger
// does not know.
func (w *world) subscribeOnce(client *http.Client, organization, path, more string) (hook ledger.Webhook, err error) {
	if hook, err = w.createOnce(client, organization, path, "*", more); err == nil {
		w.ledger.Subscribe(hook)
	}
	return hook, err
}

// createOnce is subscribeOnce, for any events, and the ledger is the caller's to tell.
func (w *world) createOnce(client *http.Client, organization, path, events, more string) (hook ledger.Webhook, err error) {
	body := fmt.Sprintf(`{"organization":%q,"active":true,"url":%q,"events":%q%s}`, organization, w.targets.URL(path), events, more)
	status, answer, err := w.try(w.t.Context(), client, http.MethodPost, "/v1/webhooks", body)
	switch {
	case err != nil || status == http.StatusServiceUnavailable:
		return hook, fmt.Errorf("creating a webhook at %s: %w: status %d: %s: %w", path, errUnavailable, status, answer, err)
	case status != http.StatusCreated:
		return hook, fmt.Errorf("creating a webhook at %s: status %d: %s", path, status, answer)
	}
	hook = ledger.Webhook{Organization: organization, Path: path}
	if err := json.Unmarshal(answer, &hook); err != nil {
		return hook, fmt.Errorf("reading a webhook: %w", err)
	}
	return hook, nil
}

var errUnavailable = errors.New("ingest cannot say whether it was made")

// deleteAt deletes an organization's webhooks with a URL.
func (w *world) deleteAt(client *http.Client, organization, url string) error {
	for cursor, more := "", true; more; more = cursor != "" {
		_, answer, err := w.try(w.t.Context(), client, http.MethodGet, "/v1/webhooks?limit=1000&organization="+organization+cursor, "")
		if err != nil {
			return err
		}
		var page struct {
			Data []struct{ ID, URL string }
			Next string
		}
		if err := json.Unmarshal(answer, &page); err != nil {
			return fmt.Errorf("reading webhooks: %w", err)
		}
		if cursor = ""; page.Next != "" {
			cursor = "&cursor=" + page.Next
		}
		for _, found := range page.Data {
			if found.URL != url {
				continue
			}
			if status, answer, err := w.try(w.t.Context(), client, http.MethodDelete, "/v1/webhooks/"+found.ID, ""); err != nil || status != http.StatusNoContent {
				return fmt.Errorf("deleting webhook %s: status %d: %s: %w", found.ID, status, answer, err)
			}
		}
	}
	return nil
}

// subscribeMany creates so many webhooks: each is told how many were before it.
func (w *world) subscribeMany(n int, of func(i int) (organization, path, more string)) []ledger.Webhook {
	w.t.Helper()
	hooks := make([]ledger.Webhook, n)
	client := &http.Client{Timeout: soon, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	defer client.CloseIdleConnections()
	var all sync.WaitGroup
	numbers, wrong := make(chan int), make(chan error, n)
	for range 32 {
		all.Go(func() {
			for i := range numbers {
				organization, path, more := of(i)
				hook, err := w.trySubscribe(client, organization, path, more)
				if hooks[i] = hook; err != nil {
					wrong <- err
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	all.Wait()
	select {
	case err := <-wrong:
		w.t.Fatal(err)
	default:
	}
	return hooks
}

// organize makes organizations with a webhook each. Where the answer is lost, as it
// may be by a broker that has just started, another organization is made: the
// webhook that may be there gets no event then.
func (w *world) organize(n int, more string, answer receiver.Answer) {
	w.t.Helper()
	for len(w.organizations) < n {
		name := "o" + strconv.Itoa(len(w.organizations))
		pipeline.Wait(w.t, soon, "an organization", func() error {
			hook, err := w.subscribeOnce(http.DefaultClient, name, "/"+name, more)
			if err == nil {
				w.targets.Answers(hook.Path, answer)
				w.organizations = append(w.organizations, name)
			}
			name += "x"
			return err
		})
	}
}
