package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
)

// nodeV1a verifies Ed25519 signatures with Node's own crypto: each line's body
// under each of its keys, by one of its signatures, and no changed one. A raw public
// key becomes one in DER by a fixed prefix (RFC 8410, section 4).
const nodeV1a = `
const crypto = require("crypto");
for (const line of require("fs").readFileSync(0, "utf8").trim().split("\n")) {
  const r = JSON.parse(line);
  const signatures = r.headers["webhook-signature"].split(" ").filter((s) => s.startsWith("v1a,")).map((s) => Buffer.from(s.slice(4), "base64"));
  if (signatures.length !== r.keys.length) throw new Error(signatures.length + " signatures for " + r.keys.length + " keys");
  const signed = (body) => Buffer.from(r.headers["webhook-id"] + "." + r.headers["webhook-timestamp"] + "." + body);
  for (const text of r.keys) {
    const raw = Buffer.from(text.slice("whpk_".length), "base64");
    const key = crypto.createPublicKey({ key: Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), raw]), format: "der", type: "spki" });
    if (!signatures.some((s) => crypto.verify(null, signed(r.body), key, s))) throw new Error("not verified by " + text);
    if (signatures.some((s) => crypto.verify(null, signed(r.body + " "), key, s))) throw new Error("a changed body was verified");
  }
}
`

// TestRotation rotates the secrets of a webhook that signs by both schemes and has
// credentials of its own, and then has the key ring's old key replaced.
func TestRotation(t *testing.T) {
	s := start(t)
	const first = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	body := fmt.Sprintf(`{"organization":"acme","url":%q,"events":"*","signatures":["v1","v1a"],"secret":%q,`+
		`"headers":[{"name":"X-Team","value":"blue"},{"name":"X-Token","value":"t0ken","sensitive":true}],"auth":{"type":"basic","username":"Aladdin","password":"open sesame"}}`,
		s.receiver.URL("/rotated"), first)
	path := "/v1/webhooks/" + s.want(t, http.StatusCreated, http.MethodPost, "/v1/webhooks", body).field(t, "id")
	var lines strings.Builder
	sent := 0
	// next sends an event and returns its request; its v1a signatures are Node's to verify.
	next := func(keys int) receiver.Request {
		sent++
		s.post(t, fmt.Sprintf(`{"event":"a.b","organization":"acme","payload":{"n":%d,"text":"é😀"}}`, sent))
		r := s.receiver.WaitFor(t, "/rotated", sent, soon)[sent-1]
		public := s.publicKeys(t, strings.TrimPrefix(path, "/v1/webhooks/"))
		if len(public) != keys {
			t.Errorf("public keys: got %v, want %d", public, keys)
		}
		line, err := json.Marshal(map[string]any{"keys": public, "body": string(r.Body), "headers": webhookHeaders(r)})
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(line, '\n'))
		return r
	}
	// RFC 7617, section 2, has the example.
	own := map[string]string{"X-Team": "blue", "X-Token": "t0ken", "Authorization": "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="}
	verified := func(r receiver.Request, by, notBy []string) {
		t.Helper()
		for name, want := range own {
			if got := r.Header.Get(name); got != want {
				t.Errorf("request %d has %s %q, want %q", sent, name, got, want)
			}
		}
		for _, secret := range by {
			if err := r.Verify(secret); err != nil {
				t.Error(err)
			}
		}
		for _, secret := range notBy {
			if r.Verify(secret) == nil {
				t.Errorf("request %d is signed with a secret that is out of force", sent)
			}
		}
	}

	verified(next(1), []string{first}, nil)
	second := s.want(t, http.StatusCreated, http.MethodPost, path+"/secrets", "").field(t, "secret")
	verified(next(2), []string{first, second}, nil)
	third := s.want(t, http.StatusCreated, http.MethodPost, path+"/secrets", `{"overlap_seconds":0}`).field(t, "secret")
	verified(next(1), []string{third}, []string{first, second})

	s.rewrap(t)
	verified(next(1), []string{third}, nil)

	node, _ := pipeline.Node(t)
	verify := exec.CommandContext(t.Context(), node, "-e", nodeV1a)
	verify.Stdin = strings.NewReader(lines.String())
	runCommand(t, verify)
}

// rewrap puts another key into the ring's place, with which the sender then runs alone.
func (s *system) rewrap(t *testing.T) {
	t.Helper()
	const newKey = "k2:ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
	out, _, code := pipeline.Run(t, "postrider", "webhooks", "rewrap", "--brokers="+strings.Join(s.kafka.Brokers, ","),
		"--topic-prefix="+s.topics.Prefix, "--key-ring="+newKey+","+keyRing)
	if code != 0 || !strings.HasPrefix(out, "1 webhooks, 1 of them") {
		t.Fatalf("re-wrapping: exit code %d, %q", code, out)
	}
	s.sender.Terminate(t, soon)
	s.sender = pipeline.Start(t, "sender", join(s.common(), nil, loopback, "--instance=sender-1", "--key-ring="+newKey,
		"--clickhouse="+s.ch.Native, "--clickhouse-database="+s.ch.Database)...)
}

// publicKeys asks for those of a webhook, as a receiver does: without an API key.
func (s *system) publicKeys(t *testing.T, webhook string) (keys []string) {
	t.Helper()
	a := s.want(t, http.StatusOK, http.MethodGet, "/.well-known/webhook-keys?webhook="+webhook, "", "Authorization", "")
	var answer struct {
		Keys []struct {
			PublicKey string `json:"public_key"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(a.Body, &answer); err != nil {
		t.Fatal(err)
	}
	for _, k := range answer.Keys {
		keys = append(keys, k.PublicKey)
	}
	return keys
}
