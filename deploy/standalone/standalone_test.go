package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

// What a whole process does is tested in loadtest/e2e.

func TestFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "data")
	first, err := openFolder(path, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := schemas.ParseKeyRing(first.keyRing); err != nil || !first.madeKey || len(first.adminKey) < minAdminKey {
		t.Errorf("first start: %v, made a key: %v, of %d characters", err, first.madeKey, len(first.adminKey))
	}
	_, err = openFolder(path, "")
	if _, ok := errors.AsType[*process.SettingsError](err); !ok || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("opening it twice: got %v, want a settings error that says so", err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}

	second, err := openFolder(path, "")
	if err != nil {
		t.Fatal(err)
	}
	if second.madeKey || second.adminKey != first.adminKey || second.keyRing != first.keyRing {
		t.Error("the second start has other secrets")
	}
	if err := second.close(); err != nil {
		t.Fatal(err)
	}

	given := strings.Repeat("g", minAdminKey)
	third, err := openFolder(path, given)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(filepath.Join(path, adminKeyFile))
	if err != nil || strings.TrimSpace(string(kept)) != first.adminKey || third.adminKey != given || third.madeKey || third.adminKeyPath != "" {
		t.Errorf("with a key given: %v, kept %q, used %q", err, kept, third.adminKey)
	}
	if err := third.close(); err != nil {
		t.Fatal(err)
	}
	if lock, err := lockFolder(filepath.Join(path, "none"), false); lock != nil || err != nil {
		t.Errorf("looking at a folder that is not there: %v %v", lock, err)
	}
}

func TestAdvertised(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.1:9092":   "127.0.0.1",
		"localhost:9092":   "localhost",
		"192.168.1.7:9092": "192.168.1.7",
		"[::1]:9092":       "::1",
		":9092":            "laptop",
		"0.0.0.0:9092":     "laptop",
		"[::]:9092":        "laptop",
	} {
		if got, err := advertised(listen, "laptop"); err != nil || got != want {
			t.Errorf("%s: got %q %v, want %q", listen, got, err, want)
		}
	}
}

// TestBannerInAShell has the shell take the bearer as it is printed, from a folder with a name that needs care.
func TestBannerInAShell(t *testing.T) {
	data := filepath.Join(t.TempDir(), `it's "$HOME" of mine`)
	f, err := openFolder(data, "")
	if err != nil {
		t.Fatal(err)
	}
	var cfg config
	cfg.Register(process.NewSettings("test"))
	shown := newBanner(&cfg, f, &base{cfg: &cfg}, "0.0.0.0:8080", "127.0.0.1:8081")
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", `printf %s "Bearer `+shown.bearer+`"`).CombinedOutput()
	if err != nil || string(out) != "Bearer "+f.adminKey {
		t.Errorf("the shell makes %q of it: %v", out, err)
	}
	text := shown.String()
	for _, want := range []string{"http://localhost:8080/v1/events", "https://example.com/hook", f.adminKey} {
		if !strings.Contains(text, want) {
			t.Errorf("the banner has no %q:\n%s", want, text)
		}
	}
}

func TestSettings(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string // a part of the problem; empty: none
	}{
		{nil, ""},
		{[]string{"--listen=127.0.0.1:9092"}, "--kafka-listen"},
		{[]string{"--listen=127.0.0.1:9092", "--brokers=k:9092"}, ""},
		{[]string{"--clickhouse-http-listen=:8123"}, "loopback"},
		{[]string{"--clickhouse-http-listen=:8123", "--clickhouse=ch:9000"}, ""},
		{[]string{"--clickhouse=nowhere"}, "--clickhouse"},
		{[]string{"--clickhouse-native-listen=127.0.0.2:9000"}, "same host"},
		{[]string{"--kafka-tls"}, "--brokers"},
		{[]string{"--kafka-sasl-user=u", "--kafka-sasl-password=p"}, "--brokers"},
		{[]string{"--admin-key=" + strings.Repeat("ä", minAdminKey)}, ""},
		{[]string{"--admin-key=short"}, "at least 32"},
		{[]string{"--retry-schedule=0s"}, "--retry-schedule"},
		{[]string{"--data="}, "--data"},
	} {
		var cfg config
		s := process.NewSettings("test")
		cfg.Register(s)
		err := s.Parse(append([]string{"--data=" + t.TempDir()}, test.args...), nil)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: got %v, want %q", test.args, err, test.want)
		}
	}
}
