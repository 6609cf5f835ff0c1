package consume

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postrider/postrider/schemas"
)

// metrics are the consumer's. Labels are from closed sets.
type metrics struct {
	attempts     *prometheus.CounterVec
	transactions *prometheus.CounterVec
	duration     prometheus.Histogram
	badWebhooks  prometheus.Counter
	parked       prometheus.Counter
	rejected     prometheus.Counter
	removed      prometheus.Counter
	assignments  prometheus.Counter
	disabled     *prometheus.CounterVec
}

func newMetrics(registry prometheus.Registerer, c *Consumer) *metrics {
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postrider_sender_attempts_total",
			Help: "Attempts, and decisions to make none, by what they came to.",
		}, []string{"result", "reason"}),
		transactions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postrider_sender_transactions_total",
			Help: "Transactions by their end: committed, aborted (written again) or unknown (the group is left).",
		}, []string{"end"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "postrider_sender_transaction_seconds",
			Help:    "Time from the first record of a transaction to its end.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		badWebhooks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postrider_sender_bad_webhooks_total",
			Help: "Webhook records that could not be read; the last good one stayed in force.",
		}),
		parked: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postrider_sender_parked_total",
			Help: "Deliveries put off for want of room, without an attempt.",
		}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postrider_sender_rejected_total",
			Help: "Bad records set aside in the topic rejected.",
		}),
		removed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postrider_sender_removed_total",
			Help: "Unfinished deliveries that the topic's retention removed.",
		}),
		assignments: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postrider_sender_assignments_total",
			Help: "Assignments of partitions by the group.",
		}),
		disabled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postrider_sender_webhooks_disabled_total",
			Help: "Webhooks disabled for what their targets did: gone (410), unwanted (they asked for it), failing.",
		}, []string{"reason"}),
	}
	registry.MustRegister(m.disabled, m.attempts, m.transactions, m.duration, m.badWebhooks, m.parked, m.rejected, m.removed, m.assignments)
	registry.MustRegister(gauges(c)...)
	return m
}

// gauges show the session that runs.
func gauges(c *Consumer) []prometheus.Collector {
	return []prometheus.Collector{
		gauge("postrider_sender_attempts_running", "Attempts being made.", func() float64 {
			return float64(c.snapshot().running)
		}),
		gauge("postrider_sender_deliveries_waiting", "Deliveries that wait in memory for their webhook's lane.", func() float64 {
			return float64(c.snapshot().waiting)
		}),
		gauge("postrider_sender_in_flight_bytes", "Memory of deliveries that are started and not committed.", func() float64 {
			return float64(c.snapshot().inFlight)
		}),
		gauge("postrider_sender_partitions", "Partitions worked, over all topics of deliveries.", func() float64 {
			return float64(c.snapshot().partitions)
		}),
		gauge("postrider_sender_breakers_open", "Webhooks whose targets are not asked now, as they failed too often.", func() float64 {
			if s := c.session(); s != nil {
				return float64(s.board.breakers())
			}
			return 0
		}),
		&waiting{
			consumer: c,
			count: prometheus.NewDesc("postrider_sender_waiting_deliveries",
				"Deliveries that wait in a retry tier, or held. Of those written before the partitions were assigned, transaction markers are counted too.",
				[]string{"tier"}, nil),
			due: prometheus.NewDesc("postrider_sender_waiting_oldest_due_timestamp_seconds",
				"When the first delivery of a retry tier is due, in seconds since 1970; 0 if none waits.", []string{"tier"}, nil),
		},
		gauge("postrider_oldest_unfinished_seconds", "Age of the oldest delivery this sender works that has no end yet.", func() float64 {
			if oldest := c.snapshot().oldest; !oldest.IsZero() {
				return max(0, time.Since(oldest).Seconds())
			}
			return 0
		}),
	}
}

// waiting shows what waits in each tier.
type waiting struct {
	consumer   *Consumer
	count, due *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (w *waiting) Describe(descs chan<- *prometheus.Desc) {
	descs <- w.count
	descs <- w.due
}

// Collect implements prometheus.Collector.
func (w *waiting) Collect(metrics chan<- prometheus.Metric) {
	s := w.consumer.session()
	if s == nil {
		return
	}
	found := s.board.waits()
	for tier := range found {
		name := "held"
		if tier < len(found)-1 {
			name = schemas.DelayName(schemas.RetryDelays()[tier])
		}
		metrics <- prometheus.MustNewConstMetric(w.count, prometheus.GaugeValue, float64(found[tier].count), name)
		if name == "held" {
			continue
		}
		due := 0.0
		if at := found[tier].due; !at.IsZero() {
			due = float64(at.UnixMilli()) / 1000
		}
		metrics <- prometheus.MustNewConstMetric(w.due, prometheus.GaugeValue, due, name)
	}
}

func gauge(name, help string, f func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
}
