package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
)

// What a floor is.
const atLeast, atMost = false, true

// The floors that the pipeline is held to, on two cores with everything on them.
const (
	floorRate   = 5000.0 // events a second
	floorP50    = 15.0   // milliseconds
	floorP99    = 50.0   // milliseconds
	floorMemory = 300.0  // megabytes
)

// report is what a run found. Milliseconds, megabytes (10⁶ bytes), events a second.
type report struct {
	surroundings

	Events       int `json:"events"`
	Warmup       int `json:"warmup"`
	PayloadBytes int `json:"payload_bytes"`
	Connections  int `json:"connections"`
	Webhooks     int `json:"webhooks"`
	// Partitions are those of events and of deliveries.
	Partitions    schemas.Partitions `json:"partitions"`
	LatencyRate   int                `json:"latency_rate"`
	LatencyEvents int                `json:"latency_events"`

	Figures []figure `json:"figures"`
	Costs   []cost   `json:"costs"`
}

// surroundings are when and where it was measured.
type surroundings struct {
	At         time.Time `json:"at"`
	Processors int       `json:"processors"`
	LoadBefore string    `json:"load_before"` // /proc/loadavg: what else the machine did
}

// figure is a measurement beside the raw limit's from the same run.
type figure struct {
	Name     string  `json:"name"`
	Unit     string  `json:"unit"`
	Pipeline float64 `json:"pipeline"`
	// Bare is the bare loop's; 0: it has no such figure.
	Bare float64 `json:"bare,omitempty"`
	// Ratio is Pipeline to Bare.
	Ratio float64 `json:"ratio,omitempty"`
	// Floor is what Pipeline, or Ratio if OfRatio, must be at least, or at most if AtMost; 0: there is none.
	Floor   float64 `json:"floor,omitempty"`
	AtMost  bool    `json:"at_most,omitempty"`
	OfRatio bool    `json:"floor_of_ratio,omitempty"`
	Met     *bool   `json:"met,omitempty"`
}

func newFigure(name, unit string, pipeline, bare float64) figure {
	f := figure{Name: name, Unit: unit, Pipeline: pipeline, Bare: bare}
	if bare > 0 {
		f.Ratio = pipeline / bare
	}
	return f
}

// held is the figure with its floor: at least so much, or at most.
func (f figure) held(floor float64, most bool) figure {
	return f.judged(f.Pipeline, floor, most)
}

// heldRatio is the figure with a floor of its ratio.
func (f figure) heldRatio(floor float64, most bool) figure {
	f.OfRatio = true
	return f.judged(f.Ratio, floor, most)
}

func (f figure) judged(x, floor float64, most bool) figure {
	met := x >= floor
	if most {
		met = x <= floor
	}
	f.Floor, f.AtMost, f.Met = floor, most, &met
	return f
}

// cost is what a process took: seconds of processor time a thousand events, as
// the kernel counts them, and megabytes resident, at most.
type cost struct {
	Process  string  `json:"process"`
	Pipeline float64 `json:"cpu_seconds_per_1000"`
	Bare     float64 `json:"bare_cpu_seconds_per_1000,omitempty"`
	Peak     float64 `json:"peak_mb"`
}

// perThousand is a processor time in seconds per 1,000 events.
func perThousand(used time.Duration, events int) float64 {
	return used.Seconds() * 1000 / float64(events)
}

// together adds the sum of all processes.
func together(table []cost) []cost {
	sum := cost{Process: "together"}
	for _, c := range table {
		sum.Pipeline += c.Pipeline
		sum.Bare += c.Bare
		sum.Peak += c.Peak
	}
	return append(table, sum)
}

// rate is events a second over a time in microseconds.
func rate(events int, micros int64) float64 { return float64(events) * 1e6 / float64(micros) }

// quantile is the smallest value that at least the share q of values is not above
// (nearest rank). It sorts values, of which there must be one.
func quantile(values []float64, q float64) float64 {
	slices.Sort(values)
	rank := int(q*float64(len(values)) + 0.999999) // rounded up, but for what a product of floats is off
	return values[min(max(rank, 1), len(values))-1]
}

// waits are the milliseconds from each event's request to its arrival, and when the last one came.
// message gives an event's message id by its number. Events must have arrived exactly once each.
func waits(s sent, arrived []receiver.Seen, message func(number int) string) (milliseconds []float64, lastAt int64, err error) {
	at := make(map[string][]int64, len(arrived))
	for _, a := range arrived {
		at[a.MessageID] = append(at[a.MessageID], a.At)
	}
	lost, repeated := 0, 0
	for number, sentAt := range s.SentAt {
		times := at[message(number)]
		switch {
		case len(times) == 0:
			lost++
			continue
		case len(times) > 1:
			repeated++
		}
		milliseconds = append(milliseconds, float64(times[0]-sentAt)/1000)
		lastAt = max(lastAt, times[0])
	}
	if lost+repeated > 0 {
		return nil, 0, fmt.Errorf("of %d events %d did not arrive and %d arrived more than once: %w", len(s.SentAt), lost, repeated, errNotOnce)
	}
	return milliseconds, lastAt, nil
}

// errNotOnce says that the pipeline broke its promise, so that its speed says nothing.
var errNotOnce = errors.New("not exactly once")

func (r report) print(w io.Writer) error {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%d events (after %d that are not measured) of %d bytes, %d connections, %d webhooks, %d and %d partitions; latency: %d events at %d/s; %d processors, load before %s\n\n",
		r.Events, r.Warmup, r.PayloadBytes, r.Connections, r.Webhooks, r.Partitions.Events, r.Partitions.Deliveries, r.LatencyEvents, r.LatencyRate, r.Processors, r.LoadBefore)
	appendFigures(&text, "pipeline", "bare loop", r.Figures)
	const costRow = "%-46s %10s %10s %8s\n"
	fmt.Fprintf(&text, "\n"+costRow, "CPU-seconds per 1,000 events", "pipeline", "bare loop", "peak MB")
	for _, c := range r.Costs {
		fmt.Fprintf(&text, costRow, c.Process, amount(c.Pipeline), amount(c.Bare), amount(c.Peak))
	}
	if _, err := io.WriteString(w, text.String()+"\n"); err != nil {
		return fmt.Errorf("printing table: %w", err)
	}
	return nil
}

// appendFigures appends a table. The names are of what Pipeline and Bare hold.
func appendFigures(text *strings.Builder, pipeline, bare string, figures []figure) {
	const row = "%-46s %10s %10s %8s  %s\n"
	fmt.Fprintf(text, row, "", pipeline, bare, "ratio", "floor")
	for _, f := range figures {
		fmt.Fprintf(text, row, f.Name+", "+f.Unit, amount(f.Pipeline), amount(f.Bare), amount(f.Ratio), f.verdict())
	}
}

func (f figure) verdict() string {
	if f.Met == nil {
		return ""
	}
	sign, met := "≥", "met"
	if f.AtMost {
		sign = "≤"
	}
	if !*f.Met {
		met = "NOT MET"
	}
	if f.OfRatio {
		sign = "ratio " + sign
	}
	return sign + " " + amount(f.Floor) + " " + met
}

// amount has three digits that count; nothing for 0.
func amount(x float64) string {
	switch {
	case x == 0:
		return ""
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	case x >= 1:
		return fmt.Sprintf("%.2f", x)
	default:
		return fmt.Sprintf("%.4f", x)
	}
}

// write writes a report as JSON, and makes the folder for it.
func write(path string, report any) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding report: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("making folder of the report: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing report: %w", err)
	}
	return nil
}

// machine fills in where and when it was measured.
func (s *surroundings) machine() error {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return fmt.Errorf("reading load: %w", err)
	}
	s.At, s.Processors, s.LoadBefore = time.Now().UTC(), runtime.NumCPU(), strings.TrimSpace(string(text))
	return nil
}

// peakBytes is the most memory that a process, by its id or as self, has had
// resident: VmHWM in kB, which are kibibytes (proc(5)).
func peakBytes(process string) (int64, error) {
	text, err := os.ReadFile(filepath.Join("/proc", process, "status"))
	if err != nil {
		return 0, fmt.Errorf("reading process figures: %w", err)
	}
	return parsePeak(string(text))
}

func parsePeak(status string) (int64, error) {
	_, after, _ := strings.Cut(status, "\nVmHWM:")
	line, _, _ := strings.Cut(after, "\n")
	n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(line, "kB")), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading VmHWM %q: %w", line, err)
	}
	return n * 1024, nil
}
