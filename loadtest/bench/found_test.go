package bench

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestPerSecond(t *testing.T) {
	counts := perSecond([]int64{7_100_000, 5_000_000, 5_999_999, 6_000_000, 6_100_000, 6_200_000, 9_000_000}, 3)
	if !slices.Equal(counts, []int{2, 3, 1}) {
		t.Errorf("got %v", counts)
	}
	if got := upTo(counts, 3); len(got) != 2 {
		t.Errorf("up to 3: got %v", got)
	}
	if got := upTo(counts, 1); len(got) != 2 {
		t.Errorf("up to 1, which is the first: got %v", got)
	}
	if got := upTo(counts, 4); len(got) != 3 {
		t.Errorf("up to 4, which is not there: got %v", got)
	}
	if got := growth(counts); got != 1.5 {
		t.Errorf("growth: got %v, want 1.5", got)
	}
	if got := growth([]int{0, 5, 0, 7}); got != 0 {
		t.Errorf("growth from nothing: got %v, want 0", got)
	}
}

func TestSamples(t *testing.T) {
	const text = `# HELP a_total Text.
a_total{result="dead",reason="x"} 3
a_total{result="retry",reason="y"} 4
a_total_more 9
b_seconds_bucket{le="0.5"} 2
b_seconds_bucket{le="1"} 4
b_seconds_bucket{le="+Inf"} 5
`
	if got := total(text, "a_total", `result="dead"`); got != 3 {
		t.Errorf("one result: got %v, want 3", got)
	}
	if got := total(text, "a_total", ""); got != 7 {
		t.Errorf("all: got %v, want 7", got)
	}
	if got := histogram(text, "b_seconds"); !slices.Equal(got, []bucket{{0.5, 2}, {1, 4}}) {
		t.Errorf("histogram: got %v", got)
	}
}

func TestQuantileOf(t *testing.T) {
	buckets := between([]bucket{{1, 10}, {2, 10}, {4, 20}}, []bucket{{1, 60}, {2, 60}, {4, 120}})
	for q, want := range map[float64]float64{0.5: 1, 0.25: 0.5, 0.75: 3, 1: 4} {
		if got := quantileOf(buckets, q); got != want {
			t.Errorf("quantile %v: got %v, want %v", q, got, want)
		}
	}
	if got := quantileOf([]bucket{{1, 0}}, 0.5); got != 0 {
		t.Errorf("of nothing: got %v, want 0", got)
	}
}

func TestFloorOfRatio(t *testing.T) {
	f := newFigure("", "", 80, 100).heldRatio(0.8, atLeast)
	if got := f.verdict(); got != "ratio ≥ 0.8000 met" {
		t.Errorf("got %q", got)
	}
	if got := newFigure("", "", 160, 100).heldRatio(1.5, atMost).verdict(); got != "ratio ≤ 1.50 NOT MET" {
		t.Errorf("got %q", got)
	}
}

func TestPrintFound(t *testing.T) {
	var table bytes.Buffer
	f := found{Case: "OneTarget", Setup: "one webhook", Audit: true, Figures: []figure{newFigure("one", "ms", 3, 2)}, Seconds: []int{50, 100}}
	if err := f.print(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"OneTarget: one webhook.", "audit on", "one, ms", "1.50", "[50 100]"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in the table:\n%s", want, table.String())
		}
	}
}
