package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

func eventsCommand() *cobra.Command {
	return group("events", "Send events",
		leaf("send", "Send an event and show its id", &sendEvent{}),
	)
}

type sendEvent struct {
	api          api
	event        string
	organization string
	account      string
	id           string
	payload      string
}

// Register implements process.Registrar.
func (e *sendEvent) Register(s *process.Settings) {
	e.api.Register(s)
	s.String(&e.event, "event", "", "its name, <service>.<method>")
	s.String(&e.organization, "organization", "", "whose event it is; an organization's own key may leave it out")
	s.String(&e.account, "account", "", "the account in that organization")
	s.String(&e.id, "id", "", "its id: sent again within 24 h it is delivered once; empty: one is made")
	s.String(&e.payload, "payload", "", "a JSON object, the name of a file that holds it, or - for standard input; empty: none")
	s.Required("event")
}

func (e *sendEvent) run(ctx context.Context, t *terminal) error {
	payload, err := e.readPayload(t.in)
	if err != nil {
		return err
	}
	body, err := e.body(payload)
	if err != nil {
		return err
	}
	var accepted struct {
		ID string `json:"id"`
	}
	if err := e.api.call(ctx, t, "sending event "+e.event, http.MethodPost, "/v1/events", body, &accepted); err != nil {
		return err
	}
	if t.asJSON {
		return t.showJSON(accepted)
	}
	return t.showLine("%s", accepted.ID)
}

// readPayload tells the three forms apart: a payload is an object, so text begins with a brace.
func (e *sendEvent) readPayload(stdin io.Reader) ([]byte, error) {
	text := []byte(e.payload)
	var err error
	switch {
	case e.payload == "-":
		text, err = io.ReadAll(io.LimitReader(stdin, schemas.MaxPayloadBytes+1))
	case e.payload != "" && !strings.HasPrefix(strings.TrimSpace(e.payload), "{"):
		text, err = os.ReadFile(e.payload)
	}
	if err != nil {
		return nil, fmt.Errorf("reading payload: %w", err)
	}
	return bytes.TrimSpace(text), nil
}

// body puts the payload into the request as it is: encoding/json would write it anew.
func (e *sendEvent) body(payload []byte) ([]byte, error) {
	if len(payload) > 0 && !json.Valid(payload) {
		return nil, fmt.Errorf("reading payload: it is not JSON: %.60q", payload)
	}
	envelope, err := json.Marshal(struct {
		ID           string `json:"id,omitempty"`
		Event        string `json:"event"`
		Organization string `json:"organization,omitempty"`
		Account      string `json:"account,omitempty"`
	}{e.id, e.event, e.organization, e.account})
	if err != nil {
		return nil, fmt.Errorf("encoding event %q: %w", e.event, err)
	}
	if len(payload) == 0 {
		return envelope, nil
	}
	body := append(bytes.TrimSuffix(envelope, []byte("}")), `,"payload":`...)
	return append(append(body, payload...), '}'), nil
}
