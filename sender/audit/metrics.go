package audit

import "github.com/prometheus/client_golang/prometheus"

// metrics of the writer. Labels are tables and sources: closed sets.
type metrics struct {
	rows      *prometheus.CounterVec
	inserts   *prometheus.CounterVec
	lookups   *prometheus.CounterVec
	blocks    *prometheus.CounterVec
	rejected  *prometheus.CounterVec
	lost      prometheus.Counter
	lag       *prometheus.GaugeVec
	buffered  prometheus.Gauge
	insertSec *prometheus.HistogramVec
}

func newMetrics(r *prometheus.Registry) *metrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postrider_audit_" + name, Help: help}, labels)
	}
	m := &metrics{
		rows:     counters("rows_total", "Rows inserted into ClickHouse.", "table"),
		inserts:  counters("inserts_total", "Inserts sent to ClickHouse: ok, refused (no row is in) or unknown (looked up next).", "table", "result"),
		lookups:  counters("lookups_total", "Blocks looked up before they were inserted: none, some or all of their rows were there.", "table", "found"),
		blocks:   counters("blocks_total", "Blocks that are in ClickHouse with all their rows.", "source"),
		rejected: counters("rejected_records_total", "Records that could not be decoded and went to the topic rejected.", "source"),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postrider_audit_lost_events_total", Help: "Events without a row, as Kafka had dropped them before the audit came to them.",
		}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "postrider_audit_lag_records", Help: "Records not in ClickHouse yet, over this process's partitions.",
		}, []string{"source"}),
		buffered: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postrider_audit_buffered_bytes", Help: "Memory held for rows that are not in ClickHouse yet, estimated.",
		}),
		insertSec: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "postrider_audit_insert_seconds", Help: "Time an insert took.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"table"}),
	}
	r.MustRegister(m.rows, m.inserts, m.lookups, m.blocks, m.rejected, m.lost, m.lag, m.buffered, m.insertSec)
	return m
}
