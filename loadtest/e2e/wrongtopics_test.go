package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/postrider/postrider/loadtest/pipeline"
)

// TestWrongTopics is P12 for topics: each that is missing or not as it must be is
// named by each service, with a command that mends it when it is run as it was
// printed. No service creates one, though the broker would let it.
func TestWrongTopics(t *testing.T) {
	cluster := pipeline.StartKafka(t, 1, "auto.create.topics.enable=true")
	s := prepare(t, cluster, "wrong.", pipeline.SharedClickHouse(t))
	w := &wrongTopics{system: s, admin: kadm.NewClient(s.client(t)), tools: kafkaTools(t)}
	s.launch(t)
	for _, service := range s.services() {
		service.WaitReady(t)
	}
	s.subscribe(t, "acme", "", "/wrong", "*") // the table is never empty again, but by mistake

	t.Run("cleanup policy of webhooks", func(t *testing.T) {
		w.breakAndMend(t, s.topics.Webhooks, `cleanup.policy is "delete"`, func() {
			w.configure(t, s.topics.Webhooks, "cleanup.policy", "delete")
		})
	})
	t.Run("cleanup policy of events", func(t *testing.T) {
		w.breakAndMend(t, s.topics.Events, `cleanup.policy is "compact"`, func() {
			w.configure(t, s.topics.Events, "cleanup.policy", "compact")
		})
	})
	t.Run("too few partitions of routed", func(t *testing.T) {
		w.breakAndMend(t, s.topics.Routed, "it has 2 partitions and should have 4", func() { w.remake(t, s.topics.Routed, 2) })
	})
	t.Run("too many partitions of held", func(t *testing.T) {
		w.breakAndMend(t, s.topics.Held, "it has 6 partitions and should have 4", func() { w.remake(t, s.topics.Held, 6) })
	})
	t.Run("a retry tier missing", func(t *testing.T) {
		w.breakAndMend(t, s.topics.Retry[3], "does not exist", func() { w.remake(t, s.topics.Retry[3], 0) })
	})
	t.Run("retention of deliveries", w.testRetention)
	t.Run("webhooks missing", w.testTableLost)
}

type wrongTopics struct {
	*system

	admin *kadm.Client
	tools string // folder for PATH
}

// kafkaTools is a folder with Kafka's tools under their names, and with postrider.
func kafkaTools(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, class := range map[string]string{
		"kafka-topics.sh": "org.apache.kafka.tools.TopicCommand", "kafka-configs.sh": "kafka.admin.ConfigCommand",
	} {
		script := "#!/bin/sh\nexec '" + strings.Join(pipeline.KafkaTool(t, class).Args, "' '") + "' \"$@\"\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(pipeline.Binary(t, "postrider"), filepath.Join(dir, "postrider")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (w *wrongTopics) configure(t *testing.T, topic, key, value string) {
	t.Helper()
	answers, err := w.admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Name: key, Value: &value}}, topic)
	if err == nil {
		err = answers[0].Err
	}
	if err != nil {
		t.Fatal(err)
	}
}

// remake deletes a topic and creates it with so many partitions, or not at all.
func (w *wrongTopics) remake(t *testing.T, topic string, partitions int32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if _, err := w.admin.DeleteTopic(ctx, topic); err != nil {
		t.Fatal(err)
	}
	pipeline.Wait(t, soon, "the topic to be gone", func() error {
		if w.exists(t, topic) {
			return errNotYet
		}
		return nil
	})
	if partitions > 0 {
		policy, size := "delete", "1179648"
		_, err := w.admin.CreateTopic(ctx, partitions, 1, map[string]*string{"cleanup.policy": &policy, "max.message.bytes": &size}, topic)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (w *wrongTopics) exists(t *testing.T, topic string) bool {
	t.Helper()
	listed, err := w.admin.ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return listed.Has(topic)
}

// breakAndMend stops the services, breaks a topic, and starts them: each says what
// is wrong until the command that it prints has been run.
func (w *wrongTopics) breakAndMend(t *testing.T, topic, text string, breaks func()) {
	t.Helper()
	w.stop(t)
	breaks()
	there := w.exists(t, topic)
	w.restart(t)
	var commands []string
	for _, service := range w.services() {
		command := ""
		pipeline.Wait(t, 2*soon, "the fault to be named", func() (err error) {
			status, body := service.Readyz(t)
			command, err = commandIn(body, topic, text)
			if status != http.StatusServiceUnavailable {
				err = fmt.Errorf("%w: status %d: %s", errNotYet, status, body)
			}
			return err
		})
		commands = append(commands, command)
	}
	if commands[0] != commands[1] || commands[0] != commands[2] {
		t.Errorf("the services print different commands: %q", commands)
	}
	if now := w.exists(t, topic); now != there {
		t.Errorf("the topic exists: %v before the services started, %v now", there, now)
	}
	w.run(t, commands[0])
	for _, service := range w.services() {
		service.WaitReady(t)
	}
	w.works(t)
}

// commandIn is the command that an answer of /readyz prints for a topic, whose fault is told by text.
func commandIn(body, topic, text string) (string, error) {
	var ready struct {
		Dependencies []struct{ Error string }
	}
	if err := json.Unmarshal([]byte(body), &ready); err != nil {
		return "", fmt.Errorf("reading /readyz %q: %w", body, err)
	}
	line := regexp.MustCompile(`(?m)` + regexp.QuoteMeta(topic+": ") + `[^\n]*` + regexp.QuoteMeta(text) + `[^\n]*; mend it with: ([^\n]+)$`)
	for _, d := range ready.Dependencies {
		if found := line.FindStringSubmatch(d.Error); found != nil {
			return found[1], nil
		}
	}
	return "", fmt.Errorf("%w: no fault of %s in %s", errNotYet, topic, body)
}

// run runs a command as it was printed.
func (w *wrongTopics) run(t *testing.T, command string) {
	t.Helper()
	t.Log(command)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
	cmd.Env = append(os.Environ(), "PATH="+w.tools+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("running %s: %v\n%s", command, err, out)
	}
}

// works has an event go through everything.
func (w *wrongTopics) works(t *testing.T) {
	t.Helper()
	before := w.receiver.Count("/wrong")
	w.post(t, `{"event":"a.b","organization":"acme"}`)
	w.receiver.WaitFor(t, "/wrong", before+1, soon)
}

func (w *wrongTopics) stop(t *testing.T) {
	t.Helper()
	for _, service := range w.services() {
		service.Kill9(t)
	}
}

func (w *wrongTopics) restart(t *testing.T) {
	t.Helper()
	for _, service := range w.services() {
		service.Restart(t)
	}
}

// testRetention: it is the operator's to choose, so the services say it and go on.
func (w *wrongTopics) testRetention(t *testing.T) {
	w.stop(t)
	w.configure(t, w.topics.Deliveries, "retention.ms", "3600000")
	said := regexp.MustCompile(`object=` + regexp.QuoteMeta(w.topics.Deliveries) + ` difference="retention.ms is [^\n]* mend="([^"\n]+)"`)
	before := w.outputs(t)
	w.restart(t)
	command := ""
	for i, service := range w.services() {
		service.WaitReady(t)
		found := said.FindStringSubmatch(service.Output(t)[len(before[i]):])
		if found == nil {
			t.Fatalf("%d does not say that the retention differs: %s", i, service.Output(t)[len(before[i]):])
		}
		command = found[1]
	}
	w.run(t, command)
	w.stop(t)
	before = w.outputs(t)
	w.restart(t)
	for i, service := range w.services() {
		service.WaitReady(t)
		if said.MatchString(service.Output(t)[len(before[i]):]) {
			t.Errorf("%d says that the retention differs, though the command was run", i)
		}
	}
	w.works(t)
}

func (w *wrongTopics) outputs(t *testing.T) (texts []string) {
	t.Helper()
	for _, service := range w.services() {
		texts = append(texts, service.Output(t))
	}
	return texts
}

// testTableLost: without the topic of webhooks nothing is routed, nor with the empty
// one that the command makes: that was no decision to have no webhooks any more.
func (w *wrongTopics) testTableLost(t *testing.T) {
	w.stop(t)
	w.remake(t, w.topics.Webhooks, 0)
	w.restart(t)
	command := ""
	for _, service := range w.services() {
		pipeline.Wait(t, 2*soon, "the loss to be named", func() (err error) {
			_, body := service.Readyz(t)
			command, err = commandIn(body, w.topics.Webhooks, "does not exist")
			return err
		})
	}
	if w.exists(t, w.topics.Webhooks) {
		t.Error("a service has created the topic of webhooks")
	}
	w.run(t, command)
	w.ingest.WaitReady(t) // by which they come back
	w.post(t, `{"event":"a.b","organization":"acme","id":"for-the-lost"}`)
	for _, service := range []*pipeline.Service{w.router, w.sender} {
		pipeline.Wait(t, 2*soon, "the loss to be named", func() error {
			if status, body := service.Readyz(t); status != http.StatusServiceUnavailable || !strings.Contains(body, "its webhooks are lost") {
				return fmt.Errorf("%w: status %d: %s", errNotYet, status, body)
			}
			return nil
		})
	}
	w.subscribe(t, "acme", "", "/wrong/again", "*")
	w.receiver.WaitFor(t, "/wrong/again", 1, soon)
	for _, service := range w.services() {
		service.WaitReady(t)
	}
}
