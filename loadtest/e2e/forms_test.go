package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postrider/postrider/loadtest/pipeline"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
)

// form is an event in one of the three forms that the events topic has.
type form struct {
	name    string
	headers [][2]string
	value   string
}

func forms(id, payload string) []form {
	return []form{
		{"binary", [][2]string{
			{"ce_specversion", "1.0"},
			{"ce_id", id + "-binary"},
			{"ce_type", "labs.created"},
			{"ce_source", "/lab"},
			{"ce_organization", "acme"},
			{"content-type", "application/json"},
		}, payload},
		{
			"structured",
			[][2]string{{"content-type", "application/cloudevents+json; charset=UTF-8"}},
			`{"specversion":"1.0","id":"` + id + `-structured","type":"labs.created","source":"/lab","organization":"acme","data":` + payload + `}`,
		},
		{"plain", nil, `{"id":"` + id + `-plain","event":"labs.created","organization":"acme","payload":` + payload + `}`},
	}
}

// TestKafkaForms has three foreign clients write each of the three forms straight
// to Kafka.
func TestKafkaForms(t *testing.T) {
	s := start(t)
	s.subscribe(t, "acme", "", "/forms", "labs")
	const payload = `{"weight": 0.1000, "name": "é"}`
	producers := map[string]func(*testing.T, *system, form){
		"console": produceConsole, "python": producePython, "franz-go": produceFranz,
	}
	want := map[string]bool{}
	for producer, produce := range producers {
		for _, f := range forms(producer, payload) {
			produce(t, s, f)
			want[`{"id":"`+producer+"-"+f.name+`","event":"labs.created","payload":`+payload+`}`] = true
		}
	}
	for _, body := range bodies(s.receiver.WaitFor(t, "/forms", len(want), soon)) {
		if !want[body] {
			t.Errorf("body %s was sent by nobody, or came twice", body)
		}
		delete(want, body)
	}
}

// produceConsole is Kafka's own console producer.
func produceConsole(t *testing.T, s *system, f form) {
	t.Helper()
	var headers []string
	for _, h := range f.headers {
		headers = append(headers, h[0]+":"+h[1])
	}
	args := []string{"--bootstrap-server", s.kafka.Brokers[0], "--topic", s.topics.Events, "--reader-property", "parse.headers=false"}
	line := f.value
	if len(headers) > 0 {
		args[len(args)-1] = "parse.headers=true"
		args = append(args, "--reader-property", "headers.delimiter=|")
		line = strings.Join(headers, ",") + "|" + line
	}
	cmd := pipeline.KafkaTool(t, "org.apache.kafka.tools.ConsoleProducer", args...)
	cmd.Stdin = strings.NewReader(line + "\n")
	runCommand(t, cmd)
}

const pythonProducer = `
import json, sys
from confluent_kafka import Producer
order = json.load(sys.stdin)
p = Producer({"bootstrap.servers": order["brokers"], "partitioner": "murmur2_random", "acks": "all"})
failed = []
p.produce(order["topic"], key=b"acme", value=order["value"].encode(), headers=[(k, v.encode()) for k, v in order["headers"]],
          on_delivery=lambda err, msg: failed.append(err) if err else None)
sys.exit(1 if p.flush(20) or failed else 0)
`

// producePython is librdkafka under confluent-kafka.
func producePython(t *testing.T, s *system, f form) {
	t.Helper()
	order, err := json.Marshal(map[string]any{
		"brokers": s.kafka.Brokers[0], "topic": s.topics.Events, "value": f.value, "headers": append([][2]string{}, f.headers...),
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), pipeline.Python(t), "-c", pythonProducer)
	cmd.Stdin = strings.NewReader(string(order))
	runCommand(t, cmd)
}

func produceFranz(t *testing.T, s *system, f form) {
	t.Helper()
	record := &kgo.Record{Topic: s.topics.Events, Key: []byte("acme"), Value: []byte(f.value)}
	for _, h := range f.headers {
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
	}
	if err := s.client(t).ProduceSync(t.Context(), record).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func runCommand(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("running %s: %v\n%s", filepath.Base(cmd.Path), err, out)
	}
}

const pythonVerifier = `
import json, sys
from standardwebhooks.webhooks import Webhook
for line in sys.stdin:
    r = json.loads(line)
    Webhook(r["secret"]).verify(r["body"].encode(), r["headers"])
    try:
        Webhook(r["secret"]).verify((r["body"] + " ").encode(), r["headers"])
        sys.exit("a changed body was verified")
    except Exception as e:
        if isinstance(e, SystemExit): raise
`

const nodeVerifier = `
const { Webhook } = require("standardwebhooks");
for (const line of require("fs").readFileSync(0, "utf8").trim().split("\n")) {
  const r = JSON.parse(line);
  new Webhook(r.secret).verify(r.body, r.headers);
  let refused = false;
  try { new Webhook(r.secret).verify(r.body + " ", r.headers); } catch { refused = true; }
  if (!refused) throw new Error("a changed body was verified");
}
`

// TestSignatures has the reference libraries of three languages verify what a
// receiver got.
func TestSignatures(t *testing.T) {
	s := start(t)
	hook := s.subscribe(t, "acme", "", "/signed", "*")
	for i := range 3 {
		s.post(t, fmt.Sprintf(`{"event":"a.b","organization":"acme","payload":{"n":%d,"text":"é😀"}}`, i))
	}
	requests := s.receiver.WaitFor(t, "/signed", 3, soon)
	requests = append(requests, s.cloudEvent(t, hook)...)
	var lines strings.Builder
	for _, r := range requests {
		if err := r.Verify(hook.Secret); err != nil {
			t.Error(err)
		}
		line, err := json.Marshal(map[string]any{"secret": hook.Secret, "body": string(r.Body), "headers": webhookHeaders(r)})
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(line, '\n'))
	}
	python := exec.CommandContext(t.Context(), pipeline.Python(t), "-c", pythonVerifier)
	python.Stdin = strings.NewReader(lines.String())
	runCommand(t, python)

	node, modules := pipeline.Node(t)
	verify := exec.CommandContext(t.Context(), node, "-e", nodeVerifier)
	verify.Env = append(os.Environ(), "NODE_PATH="+modules)
	verify.Stdin = strings.NewReader(lines.String())
	runCommand(t, verify)
}

// cloudEvent has the webhook's format changed, and returns the request that is then a CloudEvent.
func (s *system) cloudEvent(t *testing.T, hook webhook) []receiver.Request {
	t.Helper()
	const payload = `{"n": 1e400,"text":"\u00e9\/" }`
	s.want(t, http.StatusOK, http.MethodPatch, "/v1/webhooks/"+hook.ID, `{"format":"cloudevents"}`)
	id := s.post(t, `{"event":"a.b","organization":"acme","payload":`+payload+`}`)
	r := s.receiver.WaitFor(t, hook.Path, 4, soon)[3]
	want := `{"specversion":"1.0","id":"` + id + `","source":"postrider","type":"a.b","organization":"acme","datacontenttype":"application/json","data":` + payload + `}`
	if string(r.Body) != want || r.Header.Get("Content-Type") != schemas.ContentTypeCloudEvent {
		t.Errorf("got %s as %q, want %s", r.Body, r.Header.Get("Content-Type"), want)
	}
	return []receiver.Request{r}
}

func webhookHeaders(r receiver.Request) map[string]string {
	headers := map[string]string{}
	for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
		headers[name] = r.Header.Get(name)
	}
	return headers
}
