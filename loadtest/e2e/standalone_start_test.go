package e2e

import (
	"net"
	"strings"
	"testing"

	"github.com/postrider/postrider/loadtest/pipeline"
)

// TestStandaloneNamesWhatIsTaken holds each port in turn, and the folder.
func TestStandaloneNamesWhatIsTaken(t *testing.T) {
	flags := []string{"listen", "admin-listen", "kafka-listen", "clickhouse-http-listen", "clickhouse-native-listen"}
	for _, taken := range flags {
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", pipeline.FreeAddr(t))
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"--data=" + t.TempDir()}
		for _, name := range flags {
			address := pipeline.FreeAddr(t)
			if name == taken {
				address = ln.Addr().String()
			}
			args = append(args, "--"+name+"="+address)
		}
		_, said, code := pipeline.Run(t, "standalone", args...)
		if code != 2 || !strings.Contains(said, "taken") || !strings.Contains(said, "--"+taken) {
			t.Errorf("--%s taken: exit code %d, it says:\n%s", taken, code, said)
		}
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
	}
	s := startStandalone(t)
	if _, said, code := pipeline.Run(t, "standalone", "--data="+s.data); code != 2 || !strings.Contains(said, "another standalone runs on it") {
		t.Errorf("folder taken: exit code %d, it says:\n%s", code, said)
	}
}

// TestStandaloneTellsAllBadSettings is one run with everything wrong.
func TestStandaloneTellsAllBadSettings(t *testing.T) {
	bad := map[string]string{
		"listen": "nowhere", "kafka-listen": "127.0.0.1:99999", "clickhouse-http-listen": "0.0.0.0:8123",
		"admin-key": "short", "allow-targets": "10.0.0.0/99", "retry-schedule": "soon", "log-format": "loud", "bogus": "1",
	}
	args := []string{"--data=" + t.TempDir()}
	for name, value := range bad {
		args = append(args, "--"+name+"="+value)
	}
	_, said, code := pipeline.Run(t, "standalone", args...)
	if code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	for name := range bad {
		if !strings.Contains(said, "--"+name) {
			t.Errorf("it says nothing of --%s:\n%s", name, said)
		}
	}
	if strings.Contains(said, "short") {
		t.Errorf("it shows the admin key:\n%s", said)
	}
}
