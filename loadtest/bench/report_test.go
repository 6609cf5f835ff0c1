package bench

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/loadtest/receiver"
)

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, test := range []struct {
		values  []float64
		q, want float64
	}{
		{[]float64{7}, 0.5, 7},
		{[]float64{7}, 0, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 3, 1, 2}, 0.5, 2},
		{[]float64{4, 3, 1, 2}, 0.99, 4},
		{hundred, 0.99, 99},
		{hundred, 0.5, 50},
		{hundred, 1, 100},
	} {
		if got := quantile(slices.Clone(test.values), test.q); got != test.want {
			t.Errorf("quantile %v of %v: got %v, want %v", test.q, test.values, got, test.want)
		}
	}
}

func TestWaits(t *testing.T) {
	s := sent{SentAt: []int64{1000, 2000}}
	arrived := func(ids ...string) []receiver.Seen {
		list := []receiver.Seen{{MessageID: "another-0", At: 9_000_000}}
		for i, id := range ids {
			list = append(list, receiver.Seen{MessageID: id, At: int64(4500 + 1000*i)})
		}
		return list
	}
	message := func(number int) string { return eventID("run", number) }
	got, last, err := waits(s, arrived("run-0", "run-1"), message)
	if err != nil || !slices.Equal(got, []float64{3.5, 3.5}) || last != 5500 {
		t.Errorf("got %v, the last at %d, %v", got, last, err)
	}
	for name, ids := range map[string][]string{
		"1 did not arrive and 0 arrived more than once": {"run-0"},
		"0 did not arrive and 1 arrived more than once": {"run-0", "run-1", "run-0"},
	} {
		if _, _, err := waits(s, arrived(ids...), message); !errors.Is(err, errNotOnce) || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
}

func TestFigure(t *testing.T) {
	for _, test := range []struct {
		figure figure
		ratio  float64
		want   string
	}{
		{newFigure("", "", 5000, 50_000).held(5000, atLeast), 0.1, "≥ 5000 met"},
		{newFigure("", "", 4999, 50_000).held(5000, atLeast), 0.09998, "≥ 5000 NOT MET"},
		{newFigure("", "", 15, 0.5).held(15, atMost), 30, "≤ 15.0 met"},
		{newFigure("", "", 15.1, 0).held(15, atMost), 0, "≤ 15.0 NOT MET"},
		{newFigure("", "", 1, 1), 1, ""},
	} {
		if got := test.figure.verdict(); got != test.want || test.figure.Ratio != test.ratio {
			t.Errorf("%+v: got %q, want %q and ratio %v", test.figure, got, test.want, test.ratio)
		}
	}
}

func TestPrint(t *testing.T) {
	r := report{
		Events: 1000, Figures: []figure{newFigure("last row in ClickHouse", "events/s", 6000, 48_000).held(floorRate, atLeast)},
		Costs: together([]cost{{"Kafka", 0.025, 0, 700}, {"client", 0.05, 0.01, 40}}),
	}
	var table bytes.Buffer
	if err := r.print(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"last row in ClickHouse, events/s", "6000", "48000", "0.1250", "≥ 5000", "met", "Kafka", "0.0250", "together", "0.0750", "0.0100", "740",
	} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in the table:\n%s", want, table.String())
		}
	}
}

func TestArithmetic(t *testing.T) {
	if got := perThousand(2*time.Second, 100_000); got != 0.02 {
		t.Errorf("processor time: got %v, want 0.02", got)
	}
	if got := rate(100_000, 20_000_000); got != 5000 {
		t.Errorf("rate: got %v, want 5000", got)
	}
	if got, err := parsePeak("Name:\tx\nVmHWM:\t   1500 kB\nVmRSS:\t 1 kB\n"); got != 1500*1024 || err != nil {
		t.Errorf("peak: got %d, %v", got, err)
	}
	if _, err := parsePeak("Name:\tx\n"); err == nil {
		t.Error("no peak: got no error")
	}
}
