package bench

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// found is what a case found of the sender alone: deliveries and webhooks were
// written straight to their topics, so that neither ingest nor the router bounds it.
type found struct {
	surroundings

	Case string `json:"case"`
	// Setup says what was measured.
	Setup string `json:"setup"`
	// other is a case that is not of the sender: its Setup says all.
	other        bool
	Audit        bool `json:"audit"`      // whether the sender wrote it meanwhile
	Partitions   int  `json:"partitions"` // of deliveries
	PayloadBytes int  `json:"payload_bytes"`
	Warmup       int  `json:"warmup"`

	// Figures are each beside its baseline from the same run.
	Figures []figure `json:"figures"`
	// Seconds are requests in each second, where the case tells of them.
	Seconds []int `json:"seconds,omitempty"`
}

func (f found) print(w io.Writer) error {
	audit := "off"
	if f.Audit {
		audit = "on"
	}
	var text strings.Builder
	if f.other {
		fmt.Fprintf(&text, "\n%s: %s. %d processors, load before %s\n\n", f.Case, f.Setup, f.Processors, f.LoadBefore)
	} else {
		fmt.Fprintf(&text, "\n%s: %s. Sender alone (after %d deliveries that are not measured), audit %s, %d bytes, %d partitions; %d processors, load before %s\n\n",
			f.Case, f.Setup, f.Warmup, audit, f.PayloadBytes, f.Partitions, f.Processors, f.LoadBefore)
	}
	appendFigures(&text, "measured", "beside", f.Figures)
	if len(f.Seconds) > 0 {
		fmt.Fprintf(&text, "requests of each second: %v\n", f.Seconds)
	}
	if _, err := io.WriteString(w, text.String()+"\n"); err != nil {
		return fmt.Errorf("printing table: %w", err)
	}
	return nil
}

// perSecond counts the times (microseconds) in each second from the first on, up to so many.
func perSecond(at []int64, seconds int) []int {
	slices.Sort(at)
	counts := make([]int, seconds)
	for _, x := range at {
		if second := int((x - at[0]) / 1e6); second < seconds {
			counts[second]++
		}
	}
	return counts
}

// upTo are the first two counts, and more up to the first that is as large as most.
func upTo(counts []int, most int) []int {
	for i, n := range counts {
		if i > 0 && n >= most {
			return counts[:i+1]
		}
	}
	return counts
}

// growth is by how much a second's count was that of the one before, at most.
func growth(counts []int) (most float64) {
	for i := 1; i < len(counts); i++ {
		if counts[i-1] > 0 {
			most = max(most, float64(counts[i])/float64(counts[i-1]))
		}
	}
	return most
}

// sample is one of a Prometheus text: its name and labels as they stand there.
type sample struct {
	series string
	value  float64
}

// samples are those of a metric, by its name up to the labels.
func samples(text, name string) (list []sample) {
	for line := range strings.Lines(text) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if found, _, _ := strings.Cut(series, "{"); found != name {
			continue
		}
		if x, err := strconv.ParseFloat(value, 64); err == nil {
			list = append(list, sample{series, x})
		}
	}
	return list
}

// total is the sum of a metric over all series that hold a label, such as result="dead"; all if it is empty.
func total(text, name, label string) (sum float64) {
	for _, s := range samples(text, name) {
		if strings.Contains(s.series, label) {
			sum += s.value
		}
	}
	return sum
}

// bucket of a histogram: how many were at most so much.
type bucket struct{ most, count float64 }

// histogram reads one without labels of its own, in the order of its buckets, but
// for the last, which has no bound.
func histogram(text, name string) (buckets []bucket) {
	for _, s := range samples(text, name+"_bucket") {
		_, bound, _ := strings.Cut(s.series, `le="`)
		most, err := strconv.ParseFloat(strings.TrimSuffix(bound, `"}`), 64)
		if err == nil && most < 1e300 {
			buckets = append(buckets, bucket{most, s.value})
		}
	}
	return buckets
}

// between is what a histogram counted from one reading to another.
func between(before, after []bucket) []bucket {
	counted := slices.Clone(after)
	for i := range counted {
		if i < len(before) {
			counted[i].count -= before[i].count
		}
	}
	return counted
}

// quantileOf is the quantile of a histogram, evenly spread within its bucket (as
// PromQL's histogram_quantile has it); 0 if it is empty.
func quantileOf(buckets []bucket, q float64) float64 {
	if len(buckets) == 0 {
		return 0
	}
	rank := q * buckets[len(buckets)-1].count
	var below bucket
	for _, b := range buckets {
		if b.count >= rank && b.count > below.count {
			return below.most + (b.most-below.most)*(rank-below.count)/(b.count-below.count)
		}
		below = b
	}
	return 0
}
