package process

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

type everyKind struct {
	Name      string
	Key       string
	Listen    string
	Brokers   []string
	Partition int
	Earliest  bool
	Timeout   time.Duration
	Schedule  []time.Duration
	Memory    int64
}

func (c *everyKind) Register(s *Settings) {
	s.String(&c.Name, "instance-name", "one", "name of this instance")
	s.Secret(&c.Key, "admin-key", "", "bootstrap key")
	s.Address(&c.Listen, "listen", "127.0.0.1:8080", "where REST listens")
	s.Strings(&c.Brokers, "brokers", []string{"a:1", "b:2"}, "Kafka's addresses")
	s.Int(&c.Partition, "partitions", 12, "partitions of events")
	s.Bool(&c.Earliest, "earliest", false, "start at the earliest record")
	s.Duration(&c.Timeout, "timeout", 15*time.Second, "of a whole attempt")
	s.Durations(&c.Schedule, "retry-schedule", []time.Duration{5 * time.Second, 2 * time.Hour}, "delays")
	s.Bytes(&c.Memory, "dedup-memory", "256MiB", "bound of the dedup window")
	Between(s, &c.Partition, "partitions", 1, 100)
}

func defaults() everyKind {
	return everyKind{
		Name: "one", Listen: "127.0.0.1:8080", Brokers: []string{"a:1", "b:2"}, Partition: 12,
		Timeout: 15 * time.Second, Schedule: []time.Duration{5 * time.Second, 2 * time.Hour}, Memory: 256 << 20,
	}
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "settings.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func parse(args, environ []string) (everyKind, error) {
	var cfg everyKind
	s := NewSettings("test")
	cfg.Register(s)
	err := s.Parse(args, environ)
	return cfg, err
}

func TestParseReadsEverySource(t *testing.T) {
	secret := writeFile(t, "from-a-file\n")
	tests := []struct {
		name, file string
		environ    []string
		args       []string
		change     func(want *everyKind)
	}{
		{name: "defaults", change: func(*everyKind) {}},
		{
			name: "flags",
			args: []string{
				"--instance-name", "two", "-admin-key=k", "--listen=:0", "--brokers", "c:3, d:4,", "--partitions=7", "--earliest", "--timeout", "1m30s",
				"--retry-schedule", "0s,24h", "--dedup-memory", "64 KiB",
			},
			change: func(w *everyKind) {
				*w = everyKind{
					"two", "k", ":0", []string{"c:3", "d:4"}, 7, true, 90 * time.Second, []time.Duration{0, 24 * time.Hour}, 64 << 10,
				}
			},
		},
		{
			name:    "environment",
			environ: []string{"POSTRIDER_EARLIEST=true", "POSTRIDER_PARTITIONS=3", "POSTRIDER_LISTEN=", "POSTRIDER_PORT=tcp://10.0.0.1:80", "PARTITIONS=x"},
			change:  func(w *everyKind) { w.Earliest, w.Partition = true, 3 },
		},
		{
			name: "file",
			file: "# comment\nbrokers:\n  - c:3\n  - d:4\nadmin_key: 0012e3\npartitions: 5\nearliest: true\ntimeout: 1s\nretry_schedule: [1s, 2m]\ndedup_memory: 1GiB\nlisten:\n",
			change: func(w *everyKind) {
				w.Brokers, w.Key, w.Partition, w.Earliest = []string{"c:3", "d:4"}, "0012e3", 5, true
				w.Timeout, w.Schedule, w.Memory = time.Second, []time.Duration{time.Second, 2 * time.Minute}, 1<<30
			},
		},
		{name: "one key in the file", file: "brokers: c:3,d:4", change: func(w *everyKind) { w.Brokers = []string{"c:3", "d:4"} }},
		{name: "empty file", file: "# nothing\n", change: func(*everyKind) {}},
		{name: "literal", file: "admin_key: |\n  line\npartitions: 2\n", change: func(w *everyKind) { w.Key, w.Partition = "line", 2 }},
		{
			name: "flag before environment before file", file: "partitions: 1\ntimeout: 1s\nlisten: :1\n",
			environ: []string{"POSTRIDER_PARTITIONS=2", "POSTRIDER_TIMEOUT=2s"}, args: []string{"--partitions=3"},
			change: func(w *everyKind) { w.Partition, w.Timeout, w.Listen = 3, 2*time.Second, ":1" },
		},
		{name: "emptied list", args: []string{"--brokers="}, change: func(w *everyKind) { w.Brokers = nil }},
		{name: "secret of a file", args: []string{"--admin-key=@" + secret}, change: func(w *everyKind) { w.Key = "from-a-file" }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.file != "" {
				test.environ = append(test.environ, "POSTRIDER_CONFIG="+writeFile(t, test.file))
			}
			got, err := parse(test.args, test.environ)
			want := defaults()
			test.change(&want)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		})
	}
}

func TestParseTellsAllProblemsAtOnce(t *testing.T) {
	file := writeFile(t, strings.Join([]string{
		"listen: nowhere",
		"partitions: [1, 2]",
		"unknown_key: 1",
		"retry-schedule: 1s",
		"config: other.yaml",
		"timeout: {a: 1}",
		"timeout: 3s",
		"brokers: [[a]]",
		"earliest: maybe",
		"admin_key: [secret]",
	}, "\n"))
	_, err := parse(
		[]string{"--config", file, "--no-such", "value", "--partitions=200", "--timeout=15", "stray", "--dedup-memory=lots", "--no-other=x", "--brokers"},
		[]string{"POSTRIDER_RETRY_SCHEDULE=5s,-1s", "POSTRIDER_EARLIEST=2", "POSTRIDER_LISTEN=localhost:70000"})
	var settings *SettingsError
	if !errors.As(err, &settings) {
		t.Fatalf("got %v, want a *SettingsError", err)
	}
	want := []string{
		"--no-such: must be a setting that -h shows",
		"--no-other: must be a setting that -h shows",
		"--brokers has no value: must be texts separated by commas",
		`argument "stray": must be a flag that -h shows, with its value`,
		`--listen = "nowhere" (FILE:1): must be host:port with a port from 0 to 65535, such as 127.0.0.1:8080 (an empty host means every interface, port 0 any free port)`,
		"--partitions = a sequence (FILE:2): must be a whole number",
		`key "unknown_key" (FILE:3): must be the name of a flag that -h shows, other than config, with _ for -`,
		`key "retry-schedule" (FILE:4): must be the name of a flag that -h shows, other than config, with _ for -`,
		`key "config" (FILE:5): must be the name of a flag that -h shows, other than config, with _ for -`,
		"--timeout = a mapping (FILE:6): must be a duration of zero or more with its unit, such as 500ms, 15s or 24h",
		`key "timeout" (FILE:7): must stand only once`,
		"--brokers = a list with a sequence (FILE:8): must be texts separated by commas",
		`--earliest = "maybe" (FILE:9): must be true or false`,
		"--admin-key = a sequence (FILE:10): must be text, or @FILE with a file that can be read",
		`--listen = "localhost:70000" (POSTRIDER_LISTEN): must be host:port with a port from 0 to 65535, such as 127.0.0.1:8080 (an empty host means every interface, port 0 any free port)`,
		`--earliest = "2" (POSTRIDER_EARLIEST): must be true or false`,
		`--timeout = "15" (flag): must be a duration of zero or more with its unit, such as 500ms, 15s or 24h`,
		`--retry-schedule = "5s,-1s" (POSTRIDER_RETRY_SCHEDULE): must be durations of zero or more with their units, separated by commas, such as 5s,5m,2h`,
		`--dedup-memory = "lots" (flag): must be a whole number of bytes, KiB, MiB, GiB or TiB, such as 64KiB or 256MiB`,
		`--partitions = "200" (flag): must be from 1 to 100`,
	}
	got := slices.Clone(settings.Problems)
	for i := range got {
		got[i] = strings.ReplaceAll(got[i], file, "FILE")
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestParseRefusesFiles(t *testing.T) {
	for name, test := range map[string]struct{ content, want string }{
		"syntax":        {"admin_key: topsecret\n  listen: :1\n", "must be a YAML file: line "},
		"list":          {"- admin_key\n", "must be a YAML file with one mapping"},
		"two documents": {"listen: :1\n---\nlisten: :2\n", "must be a YAML file with one mapping"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse([]string{"--config", writeFile(t, test.content)}, nil)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "topsecret") {
				t.Errorf("got %v, want %q and no secret", err, test.want)
			}
		})
	}
	_, err := parse(nil, []string{"POSTRIDER_CONFIG=/no/such/file"})
	if want := `--config = "/no/such/file" (POSTRIDER_CONFIG): must be a file that can be read`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestChecksNameTheSetting(t *testing.T) {
	var mode, key string
	var low, high int
	s := NewSettings("test")
	s.String(&mode, "mode", "fast", "how")
	s.OneOf(&mode, "mode", "fast", "exact")
	s.Secret(&key, "key", "", "secret")
	s.Required("key")
	s.Int(&low, "low", 1, "lower bound")
	s.Int(&high, "high", 2, "upper bound")
	s.Check(func() error {
		if low > high {
			return errors.Join(s.Invalid("low", "at most --high"), errors.New("another"))
		}
		return nil
	})
	err := s.Parse([]string{"--low=3", "--mode=slow", "--key="}, nil)
	want := &SettingsError{Problems: []string{
		`--mode = "slow" (flag): must be one of fast, exact`,
		`--key = "" (flag): must be set`,
		`--low = "3" (flag): must be at most --high`,
		"another",
	}}
	if !reflect.DeepEqual(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if err := s.Parse([]string{"--low=1", "--mode=exact", "--key=k"}, nil); err != nil {
		t.Errorf("parsing good settings: %v", err)
	}
}

func TestNameRegisteredTwiceSetsBoth(t *testing.T) {
	var first, second string
	s := NewSettings("test")
	s.String(&first, "brokers", "a:1", "first")
	s.String(&second, "brokers", "b:2", "second")
	if first != "a:1" || second != "a:1" {
		t.Errorf("defaults: got %q and %q, want the first's", first, second)
	}
	if err := s.Parse([]string{"--brokers=c:3"}, nil); err != nil || first != "c:3" || second != "c:3" {
		t.Errorf("got %q and %q, %v; want c:3 twice", first, second, err)
	}
}

func TestArguments(t *testing.T) {
	var arguments []string
	var dry bool
	s := NewSettings("postrider keys revoke")
	s.Bool(&dry, "dry-run", false, "change nothing")
	s.Arguments(&arguments, "ID…")
	err := s.Parse([]string{"one", "--dry-run", "two", "--", "--three"}, nil)
	if want := []string{"one", "two", "--three"}; err != nil || !dry || !slices.Equal(arguments, want) {
		t.Errorf("got %q, dry run %v, %v; want %q", arguments, dry, err, want)
	}
}

func TestHelpShowsEverySetting(t *testing.T) {
	var cfg everyKind
	var key string
	s := NewSettings("test")
	s.Secret(&key, "key-ring", "planted-secret", "keys")
	cfg.Register(s)
	if err := s.Parse([]string{"--unknown", "-h"}, nil); !errors.Is(err, flag.ErrHelp) {
		t.Fatalf("got %v, want flag.ErrHelp", err)
	}
	var help bytes.Buffer
	if err := s.WriteHelp(&help); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"--instance-name text\n        name of this instance\n        default one; POSTRIDER_INSTANCE_NAME\n",
		"--brokers text,text…\n        Kafka's addresses\n        default a:1,b:2; POSTRIDER_BROKERS\n",
		"--retry-schedule duration,duration…\n        delays\n        default 5s,2h; POSTRIDER_RETRY_SCHEDULE\n",
		"--dedup-memory bytes\n        bound of the dedup window\n        default 256MiB; POSTRIDER_DEDUP_MEMORY\n",
		"--admin-key secret\n        bootstrap key\n        default none; POSTRIDER_ADMIN_KEY\n",
		"--key-ring secret\n        keys\n        default ********; POSTRIDER_KEY_RING\n",
		"--config text\n",
	} {
		if !strings.Contains(help.String(), want) {
			t.Errorf("help without %q:\n%s", want, help.String())
		}
	}
	if strings.Contains(help.String(), "planted-secret") {
		t.Errorf("help with a secret:\n%s", help.String())
	}
}

func TestSecretsAreMasked(t *testing.T) {
	const planted = "@planted-secret"
	var key string
	s := NewSettings("test")
	s.Secret(&key, "admin-key", "", "key")
	err := s.Parse([]string{"--admin-key", planted, "--admin-kye", planted[1:]}, nil)
	if err == nil || strings.Contains(err.Error(), planted[1:]) {
		t.Errorf("got %v, want a problem without the secret", err)
	}
	s.Check(func() error { return s.Invalid("admin-key", "longer") })
	err = s.Parse([]string{"--admin-key", planted[1:]}, nil)
	if err == nil || strings.Contains(err.Error(), planted[1:]) {
		t.Errorf("got %v, want a problem without the secret", err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("starting", "settings", s)
	if !strings.Contains(log.String(), `"settings":{"admin_key":"********"}`) {
		t.Errorf("got %s, want the secret masked", log.String())
	}
}

func TestSizesAndDurationsReadBack(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "17": 17, "17B": 17, "1KiB": 1024, "256MiB": 256 << 20, "3 GiB": 3 << 30, "2TiB": 2 << 40} {
		got, err := parseBytes(text)
		if err != nil || got != want {
			t.Errorf("parseBytes(%q) = %d, %v; want %d", text, got, err, want)
		}
		if back, err := parseBytes(formatBytes(want)); err != nil || back != want {
			t.Errorf("%d written as %q is read as %d, %v", want, formatBytes(want), back, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1.5MiB", "1MB", "9223372036854775807KiB", "1e3"} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("parseBytes(%q) = %d, want an error", text, got)
		}
	}
	for want, value := range map[string]time.Duration{"0s": 0, "24h": 24 * time.Hour, "1m30s": 90 * time.Second, "1h0m5s": time.Hour + 5*time.Second, "10m": 10 * time.Minute, "500ms": time.Second / 2} {
		if got := formatDuration(value); got != want {
			t.Errorf("formatDuration(%d) = %q, want %q", value, got, want)
		}
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add("listen: :1\nbrokers: [a, b]\n")
	f.Add("timeout: &a 1s\npartitions: *a\n")
	f.Add("a: {b: [c, {d: |\n  e\n}]}\n")
	f.Add("!!map {? x : y}\n")
	f.Add("<<: *x\n---\n...\n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content string) {
		path := filepath.Join(dir, fmt.Sprintf("%d.yaml", os.Getpid()))
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := parse([]string{"--config", path}, nil)
		var settings *SettingsError
		if err != nil && !errors.As(err, &settings) {
			t.Errorf("got %v, want a *SettingsError", err)
		}
	})
}
