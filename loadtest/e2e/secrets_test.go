package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
)

// TestSecrets is P9: after everything that knows secrets has run, well and badly,
// none stands in a topic, a table, a log, a metric or an answer, in clear or in an
// encoding of it.
func TestSecrets(t *testing.T) {
	s := start(t, "--retry-schedule=1s")
	secrets, answers := s.plant(t)
	places := s.everywhere(t)
	places["answers"] = answers
	for name, secret := range secrets {
		for place, text := range places {
			if found(text, []byte(secret)) {
				t.Errorf("%s stands in clear in %s", name, place)
			}
		}
	}
	// That nothing was found shows something only if what is there is found: in clear
	// and, where a record holds a response's body, in base64.
	for mark, place := range map[string]string{
		"planted-payload": s.topics.Events, "planted-response": s.topics.Outcomes, "planted-description": s.topics.Webhooks,
		"settings.key_ring=********": "output of ingest", "postrider_sender_attempts_total": "metrics of sender",
		"planted-url": "table outcomes", "planted-answer": "answers",
	} {
		if !found(places[place], []byte(mark)) {
			t.Errorf("%q is not found in %s, where it is", mark, place)
		}
	}
}

// plant uses every kind of secret, in requests that succeed and that fail. It
// returns them by name, and what the API answered apart from showing each once.
func (s *system) plant(t *testing.T) (secrets map[string]string, answers []byte) {
	t.Helper()
	ring := strings.TrimPrefix(keyRing, "k1:")
	secrets = map[string]string{"the admin key": adminKey, "the key ring": ring, "the key ring's key": decode64(t, ring)}
	collect := func(a answer) { answers = append(answers, a.Body...) }

	secrets["a target's basic authentication"] = base64.StdEncoding.EncodeToString([]byte("u:planted-auth-0123456789"))
	s.receiver.Answers("/planted-url", receiver.Answer{Status: 500, Body: []byte("planted-response")}, receiver.Status(200))
	for i, path := range []string{"/planted-url", "/planted-url-2"} {
		hook := s.subscribe(t, "acme", "", path, "*")
		name := fmt.Sprintf("signing secret %d", i+1)
		secrets[name] = hook.Secret
		secrets[name+"'s bytes"] = decode64(t, strings.TrimPrefix(hook.Secret, "whsec_"))
		secrets[name+"'s base64"] = strings.TrimPrefix(hook.Secret, "whsec_")
		collect(s.want(t, http.StatusOK, http.MethodPatch, "/v1/webhooks/"+hook.ID, `{"description":"planted-description",`+
			`"headers":[{"name":"X-Key","value":"planted-header-0123456789","sensitive":true}],"auth":{"type":"basic","username":"u","password":"planted-auth-0123456789"}}`))
		collect(s.call(t, http.MethodPatch, "/v1/webhooks/"+hook.ID, `{"secret":"`+hook.Secret+`"}`))
		collect(s.call(t, http.MethodGet, "/v1/webhooks/"+hook.ID, ""))
		s.want(t, http.StatusAccepted, http.MethodPost, "/v1/webhooks/"+hook.ID+"/ping", "")
	}
	for i, scopes := range [][]string{schemas.Scopes(), {schemas.ScopeEventsWrite}} {
		key := s.key(t, "acme", scopes...)
		secrets[fmt.Sprintf("API key %d", i+1)] = key
		secrets[fmt.Sprintf("API key %d's secret part", i+1)] = key[strings.LastIndexByte(key[:len(key)-43], '_')+1:]
		collect(s.as(t, key, http.MethodPost, "/v1/events", `{"event":"a.b","payload":{"text":"planted-payload"}}`))
		collect(s.as(t, key, http.MethodGet, "/v1/keys", ""))
		collect(s.as(t, key, http.MethodPost, "/v1/events", `{"event":`))
		collect(s.as(t, key+"x", http.MethodPost, "/v1/events", `{"event":"a.b"}`))
	}
	secrets["a sensitive header"], secrets["a target's password in auth"] = "planted-header-0123456789", "planted-auth-0123456789"
	const password = "planted-password-0123456789"
	secrets["a target's password"] = password
	collect(s.call(t, http.MethodPost, "/webhook-events", `{"organization":"acme","events":"a","url":"https://user:`+password+`@example.com/"}`))
	collect(s.call(t, http.MethodGet, "/v1/webhooks", ""))
	collect(s.call(t, http.MethodGet, "/v1/keys", ""))
	collect(s.call(t, http.MethodGet, "/planted-answer", ""))
	answers = append(answers, "planted-answer"...)

	s.waitQuery(t, `SELECT state, count() FROM postrider.deliveries GROUP BY state`, "delivered\t6")
	s.waitQuery(t, `SELECT count() FROM postrider.events WHERE `+notOperational, "4")
	s.waitQuery(t, `SELECT countIf(object = 'webhook' AND error = ''), countIf(object = 'key') FROM postrider.changes`, "4\t2")
	return secrets, answers
}

func decode64(t *testing.T, text string) string {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// everywhere is everything that the system keeps or shows, by its place.
func (s *system) everywhere(t *testing.T) map[string][]byte {
	t.Helper()
	places := map[string][]byte{}
	for _, topic := range s.all() {
		for _, r := range s.readAll(t, topic, kgo.FetchIsolationLevel(kgo.ReadUncommitted())) {
			parts := [][]byte{places[topic], r.Key, r.Value}
			for _, h := range r.Headers {
				parts = append(parts, []byte(h.Key), h.Value)
			}
			places[topic] = bytes.Join(parts, []byte{'\n'})
		}
	}
	tables := s.query(t, `SELECT name FROM system.tables WHERE database = '`+s.ch.Database+`'`)
	for table := range strings.FieldsSeq(tables) {
		// Raw: what is escaped would not be found.
		places["table "+table] = []byte(s.query(t, `SELECT * FROM postrider.`+table+` FORMAT TSVRaw`))
	}
	for name, service := range map[string]*pipeline.Service{"ingest": s.ingest, "router": s.router, "sender": s.sender} {
		places["output of "+name] = []byte(service.Output(t))
		places["metrics of "+name] = []byte(service.Metrics(t))
		_, ready := service.Readyz(t)
		places["readiness of "+name] = []byte(ready)
	}
	return places
}

// found looks for a secret in clear, as programs print bytes, and in whatever looks
// like base64 of either alphabet. Such a run may begin with letters that are not of
// it (a path's, say), so it is decoded from each of its first four places.
func found(text, secret []byte) bool {
	quoted := strconv.Quote(string(secret))
	for _, form := range []string{
		string(secret), hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)), quoted[1 : len(quoted)-1],
		strings.Trim(fmt.Sprintf("%d", secret), "[]"), url.QueryEscape(string(secret)), url.PathEscape(string(secret)),
	} {
		if bytes.Contains(text, []byte(form)) {
			return true
		}
	}
	for _, run := range regexp.MustCompile(`[A-Za-z0-9+/_-]{16,}`).FindAllString(string(text), -1) {
		run = strings.NewReplacer("-", "+", "_", "/").Replace(run)
		for skip := range 4 {
			part := run[skip:]
			if len(part)%4 == 1 { // the end of no encoding
				part = part[:len(part)-1]
			}
			if data, err := base64.RawStdEncoding.DecodeString(part); err == nil && bytes.Contains(data, secret) {
				return true
			}
		}
	}
	return false
}
