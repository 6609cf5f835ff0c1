package history_test

import (
	"fmt"
	"maps"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// after is a moment of the known rows.
func after(d time.Duration) string { return stamp(at0.Add(d)) }

// with adds columns to a row.
func with(r row, more row) row {
	maps.Copy(r, more)
	return r
}

// insertKnown adds the rows that the page's answers are about: three events of acme,
// one of which came twice, and their deliveries to two webhooks; of another
// organization one of each, which is in no answer.
func (w *world) insertKnown(t *testing.T) {
	t.Helper()
	lab := func(n int, name string, at time.Duration, matches int) row {
		id := fmt.Sprintf("event-%d", n)
		body := `{"id":"` + id + `","event":"` + name + `","payload":{"n": ` + strconv.Itoa(n) + `.0}}`
		return with(event(n, "acme"), row{"event": name, "accepted_at": after(at), "matches": matches, "body": body, "body_bytes": len(body)})
	}
	foreign := with(event(9, "other"), row{"event_id": "event-1"})
	w.insert(t, "event_log", lab(1, "labs.created", 0, 2), lab(2, "labs.removed", 10*time.Second, 0), lab(3, "labs.created", time.Minute, 1), foreign)
	w.insert(t, "event_copies", row{"organization": "acme", "event_id": "event-1", "result": "duplicate"}, row{"organization": "other", "event_id": "event-2", "result": "duplicate"})

	state := func(n int, event, webhook, state string, version int, more row) row {
		return with(delivery(0, "acme", state), with(row{"delivery_id": dlv(n), "event_id": event, "webhook_id": webhook, "version": version}, more))
	}
	again := row{"cause": "retry", "routed_at": after(2 * time.Hour), "attempts": 1, "status_code": 200, "updated_at": after(2*time.Hour + 30*time.Millisecond)}
	w.insert(t, "delivery_states",
		state(1, "event-1", "wh_1", "pending", 0, nil), state(2, "event-1", "wh_2", "pending", 0, nil), state(3, "event-3", "wh_1", "pending", 0, row{"routed_at": after(time.Minute)}),
		with(state(9, "event-1", "wh_1", "dead", 9, nil), row{"organization": "other"}))
	w.insert(t, "delivery_states",
		state(1, "event-1", "wh_1", "delivered", 2, row{"attempts": 2, "status_code": 200, "updated_at": after(5020 * time.Millisecond)}),
		state(2, "event-1", "wh_2", "dead", 4, row{"attempts": 2, "status_code": 500, "reason": "status", "updated_at": after(20030 * time.Millisecond)}),
		state(3, "event-3", "wh_1", "retry", 5, row{
			"attempts": 1, "status_code": 429, "reason": "status", "routed_at": after(time.Minute), "updated_at": after(time.Minute + 60*time.Millisecond), "next_attempt_at": after(65 * time.Second),
		}),
		state(4, "event-1", "wh_1", "delivered", 6, again), state(5, "event-0", "wh_1", "dead", 7, row{"attempts": 3, "reason": "timeout", "updated_at": after(time.Hour)}))

	outcome := func(n int, event, webhook string, attempt int, at time.Duration, more row) row {
		return with(row{
			"organization": "acme", "webhook_id": webhook, "delivery_id": dlv(n), "message_id": "msg_" + event + webhook, "event_id": event, "event": "labs.created", "cause": "event",
			"attempt": attempt, "url": "https://" + webhook[3:] + ".example/hook", "started_at": after(at), "accepted_at": after(0), "sender": "sender-1", "offset": int(at / time.Millisecond),
			"inserted_at": at0.Add(at + 2*time.Second).Format(time.DateTime),
		}, more)
	}
	w.insert(t, "outcomes",
		outcome(1, "event-1", "wh_1", 1, 100*time.Millisecond, row{
			"status_code": 503, "result": "retry", "reason": "status", "duration_ms": 40, "dns_ms": 5, "connect_ms": 10, "tls_ms": 15, "first_byte_ms": 8, "response_body": "later",
		}),
		outcome(1, "event-1", "wh_1", 2, 5*time.Second, row{"status_code": 200, "result": "delivered", "duration_ms": 20, "first_byte_ms": 15, "response_body": "ok", "sender": "sender-2"}),
		outcome(2, "event-1", "wh_2", 1, 200*time.Millisecond, row{"result": "retry", "reason": "timeout", "duration_ms": 15000}),
		outcome(2, "event-1", "wh_2", 2, 20*time.Second, row{"status_code": 500, "result": "dead", "reason": "status", "duration_ms": 30, "first_byte_ms": 25}),
		outcome(3, "event-3", "wh_1", 1, time.Minute+50*time.Millisecond, row{"status_code": 429, "result": "retry", "reason": "status", "duration_ms": 10, "first_byte_ms": 9, "accepted_at": after(time.Minute)}),
		outcome(4, "event-1", "wh_1", 1, 2*time.Hour, row{"status_code": 200, "result": "delivered", "duration_ms": 30, "first_byte_ms": 28, "accepted_at": after(0)}),
		with(outcome(9, "event-1", "wh_1", 1, 0, row{"status_code": 500, "result": "dead", "reason": "status", "duration_ms": 1}), row{"organization": "other"}))

	changed := func(n int, at time.Duration, more row) row {
		return with(change(n, "acme", "webhook"), with(row{"at": after(at), "object_id": "wh_1"}, more))
	}
	w.insert(t, "changes",
		changed(1, -time.Hour, row{"actor": "admin", "action": "created", "before": "", "after": `{"url":"https://0.example/hook"}`}),
		changed(2, -time.Minute, row{"before": `{"url":"https://0.example/hook"}`, "after": `{"url":"https://1.example/hook"}`}),
		changed(3, time.Minute, row{"action": "deleted", "object_id": "wh_7", "before": "", "after": "", "error": "no such thing"}),
		change(4, "other", "webhook"))
	revision := func(n int, at time.Duration, url, actor string) row {
		return row{
			"organization": "acme", "webhook_id": "wh_1", "revision": n, "generation": 1, "active": true, "url": url, "events": []string{"labs"}, "actor": actor,
			"created_at": after(-time.Hour), "changed_at": after(at),
		}
	}
	w.insert(t, "webhooks", revision(1, -time.Hour, "https://0.example/hook", "admin"), revision(2, -time.Minute, "https://1.example/hook", "key_1"),
		with(revision(3, 0, "https://x.example/hook", "key_9"), row{"organization": "other"}))
}

// newOf is where a column's value is scanned to.
func newOf(column driver.ColumnType) any { return reflect.New(column.ScanType()).Interface() }

// shown is a scanned value as the page shows it.
func shown(scanned any) string {
	value := reflect.ValueOf(scanned).Elem()
	for value.Kind() == reflect.Pointer {
		if value.IsNil() {
			return "NULL"
		}
		value = value.Elem()
	}
	if at, is := reflect.TypeAssert[time.Time](value); is {
		return strings.TrimSuffix(at.UTC().Format("2006-01-02 15:04:05.000"), ".000")
	}
	return fmt.Sprint(value.Interface())
}
