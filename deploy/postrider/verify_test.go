package main

import (
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/schemas/process"
)

// verify refuses times that make no sense, and says that it cannot tell where no broker is.
func TestVerifyRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		code int
		text string
	}{
		"a day's name":  {[]string{"--since", "yesterday"}, process.ExitSettings, "--since"},
		"the future":    {[]string{"--until", "-3h"}, process.ExitSettings, "--until"},
		"back to front": {[]string{"--since", "1h", "--until", "2h"}, process.ExitSettings, "before --until"},
		"no such list":  {[]string{"--list", "-1"}, process.ExitSettings, "--list"},
		"no broker":     {[]string{"--brokers", "127.0.0.1:1", "--log-only"}, exitUnknown, "127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			code := run(append([]string{"verify"}, test.args...), strings.NewReader(""), &stdout, &stderr)
			if code != test.code || !strings.Contains(stderr.String(), test.text) {
				t.Errorf("got exit code %d and %q, want %d and %q", code, stderr.String(), test.code, test.text)
			}
		})
	}
}

func TestParseMoment(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"": {}, "24h": now.Add(-24 * time.Hour), "2026-11-25T12:00:00Z": now.Add(-24 * time.Hour), "2026-11-25T13:00:00+01:00": now.Add(-24 * time.Hour),
	} {
		if got, err := parseMoment(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
}
