package deliver

import (
	"slices"
	"testing"
	"time"
)

func TestJudge(t *testing.T) {
	for status := 100; status < 1000; status++ {
		a := Attempt{StatusCode: status, RetryAfter: time.Minute}
		want := Verdict{Action: Retry, Reason: ReasonStatus, Wait: time.Minute, Health: Answering}
		switch {
		case status == 200:
			want = Verdict{Action: Delivered, Health: Well}
		case status >= 300 && status < 400:
			want.Reason = ReasonRedirect
		case status == 410:
			want = Verdict{Action: Final, Reason: ReasonGone, Health: Answering, Disable: true}
		case slices.Contains([]int{429, 502, 503, 504}, status):
			want.Health = Overloaded
		case status >= 500:
			want.Health = Failing
		}
		if got := Judge(&a, Answers{}); got != want {
			t.Errorf("status %d: %+v, want %+v", status, got, want)
		}
	}
	if got := Judge(&Attempt{StatusCode: 200, BodyReason: ReasonReset}, Answers{}); got.Action != Delivered {
		t.Errorf("a known 200 with its body cut short: %+v, want Delivered", got)
	}
	if got := Judge(&Attempt{StatusCode: 503, RetryAfter: 1000 * time.Hour}, Answers{}); got.Wait != MaxRetryAfter {
		t.Errorf("wait %s, want %s", got.Wait, MaxRetryAfter)
	}
}

func TestJudgeWithoutAnAnswer(t *testing.T) {
	for _, reason := range Reasons() {
		// A status beside a reason is what a parser had left over: it counts for nothing.
		a := Attempt{StatusCode: 200, Reason: reason, RetryAfter: time.Minute, Directive: DirectiveDisable}
		want := Verdict{Action: Retry, Reason: reason, Health: Failing}
		switch reason { //nolint:exhaustive // the rest are of failing targets, and retried
		case ReasonNoFreeConns, ReasonNoResources:
			want.Action, want.Health = Park, Unasked
		case ReasonCanceled:
			want.Action, want.Health = Forget, Unasked
		case ReasonInvalidTarget, ReasonNoSecret:
			want.Health = Unasked
		case ReasonTimeout, ReasonDNSTimeout, ReasonConnectTimeout, ReasonTLSTimeout:
			want.Health = Overloaded
		}
		if got := Judge(&a, Answers{}); got != want {
			t.Errorf("reason %q: %+v, want %+v", reason, got, want)
		}
	}
}

func TestJudgeByTheOwnersAnswers(t *testing.T) {
	answers := Answers{Success2xx: true, Final: []int{302, 400, 404}}
	delivered := Verdict{Action: Delivered, Health: Well}
	unwanted := Verdict{Action: Delivered, Health: Well, Disable: true}
	final := func(reason Reason, health Health) Verdict {
		return Verdict{Action: Final, Reason: reason, Health: health, Disable: reason == ReasonGone || reason == ReasonUnwanted}
	}
	tests := []struct {
		status    int
		directive string
		want      Verdict
	}{
		{200, "", delivered},
		{204, "", delivered},
		{299, DirectiveAbort, delivered}, // it has it: there is nothing to abort
		{200, DirectiveDisable, unwanted},
		{300, "", Verdict{Action: Retry, Reason: ReasonRedirect, Health: Answering}},
		{302, "", final(ReasonFinalStatus, Answering)},
		{400, "", final(ReasonFinalStatus, Answering)},
		{404, DirectiveAbort, final(ReasonAborted, Answering)},
		{410, "", final(ReasonGone, Answering)},
		{410, DirectiveAbort, final(ReasonGone, Answering)},
		{500, DirectiveAbort, final(ReasonAborted, Failing)},
		{503, DirectiveDisable, final(ReasonUnwanted, Overloaded)},
	}
	for _, test := range tests {
		if got := Judge(&Attempt{StatusCode: test.status, Directive: test.directive}, answers); got != test.want {
			t.Errorf("status %d, directive %q: %+v, want %+v", test.status, test.directive, got, test.want)
		}
	}
	a := Attempt{StatusCode: 400, Reason: ReasonTimeout} // what a parser had left over
	if got := Judge(&a, answers); got.Action != Retry {
		t.Errorf("a status that cannot be trusted: %+v, want Retry", got)
	}
}

func TestReasonsAreDistinct(t *testing.T) {
	reasons := Reasons()
	slices.Sort(reasons)
	if len(slices.Compact(reasons)) != len(Reasons()) {
		t.Errorf("a reason stands twice in %q", Reasons())
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 7, 4, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		value string
		want  time.Duration
	}{
		{"", 0},
		{"0", 0},
		{"120", 2 * time.Minute},
		{" 120\t", 2 * time.Minute},
		{"007", 7 * time.Second},
		{"86400", 24 * time.Hour},
		{"86401", 24 * time.Hour},
		{"99999999999999999999999999", 24 * time.Hour},
		{"-1", 0},
		{"+5", 0},
		{"1.5", 0},
		{"1e3", 0},
		{"0x10", 0},
		{"5 s", 0},
		{"soon", 0},
		{"Sat, 04 Jul 2026 12:00:30 GMT", 30 * time.Second},
		{"Saturday, 04-Jul-26 12:00:30 GMT", 30 * time.Second},
		{"Sat Jul  4 12:00:30 2026", 30 * time.Second},
		{"Sat, 04 Jul 2026 11:59:59 GMT", 0},
		{"Mon, 04 Jul 2033 12:00:30 GMT", 24 * time.Hour},
		{"Sat, 04 Jul 2026 12:00:30 PST", 0},
		{"2026-07-04T12:00:30Z", 0},
	}
	for _, tt := range tests {
		if got := RetryAfter(tt.value, now); got != tt.want {
			t.Errorf("RetryAfter(%q) = %s, want %s", tt.value, got, tt.want)
		}
	}
}

func TestRetryAfterOfAResponse(t *testing.T) {
	rcv := startReceiver(t, answer("HTTP/1.1 429 Slow\r\nRETRY-after: 90\r\ncontent-length: 0\r\n\r\n"))
	a := startClient(t, nil).Do(t.Context(), request(rcv.url))
	if v := Judge(&a, Answers{}); v != (Verdict{Action: Retry, Reason: ReasonStatus, Wait: 90 * time.Second, Health: Overloaded}) {
		t.Errorf("verdict %+v of %+v", v, a)
	}
}

func TestValidTraceparent(t *testing.T) {
	good := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for text, want := range map[string]bool{
		good: true, "": false, good + "-x": false, "01" + good[2:]: false, good[:54] + "\n": false,
		"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01": false, "00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01": false,
	} {
		if got := validTraceparent(text); got != want {
			t.Errorf("validTraceparent(%q) = %t, want %t", text, got, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, value := range []string{"120", "-1", "Sat, 04 Jul 2026 12:00:30 GMT", "99999999999999999999", "Sat Jul  4 12:00:30 2026"} {
		f.Add(value)
	}
	now := time.Date(2026, 7, 4, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, value string) {
		if got := RetryAfter(value, now); got < 0 || got > MaxRetryAfter {
			t.Errorf("RetryAfter(%q) = %s", value, got)
		}
	})
}
