package filter

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/schemas"
)

func testEvent(payload string) *Event {
	return NewEvent(&schemas.Event{
		ID: "evt_1", Name: "orders.created", Organization: "acme", Account: "berlin", Subject: "order-7",
		Time: time.Date(2026, 11, 26, 9, 30, 0, 0, time.FixedZone("", 3600)), Payload: []byte(payload),
	}, time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC))
}

const order = ` {"status":"open","amount":120.5,"count":3,"id":9007199254740993,"big":18446744073709551615,"paid":true,"none":null,
	"tags":["new","vip",1],"lines":[{"sku":"a","n":2},{"sku":"b","n":9}],"customer":{"name":"M\u00fcller","tags":{}},"a b":1,"twice":1,"twice":2,
	"half":"\ud800x","deep":{"er":{"est":[[1,2],[3]]}}} `

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		filter string
		want   bool
	}{
		{`true`, true},
		{`event == "orders.created" && organization == "acme" && account == "berlin" && subject == "order-7"`, true},
		{`event.startsWith("orders.")`, true},
		{`time < timestamp("2026-11-26T08:30:00Z")`, false},
		{`time == timestamp("2026-11-26T08:30:00Z") && time.getHours() == 8`, true},
		{`payload.status in ["open", "active"]`, true},
		{`payload.status in ["shut", "active"]`, false},
		{`payload.amount > 100 && payload.amount < 120.6`, true},
		{`payload.count == 3 && payload.count >= 3 && payload.count < 4`, true},
		{`payload.count in [1, 2, 3]`, true},
		{`payload.id == 9007199254740993`, true},
		{`payload.id == 9007199254740992`, false},
		{`payload.big == 18446744073709551615u`, true},
		{`payload.paid`, true},
		{`!payload.paid`, false},
		{`payload.none == null`, true},
		{`has(payload.status) && !has(payload.missing) && !has(payload.customer.missing)`, true},
		{`"status" in payload && !("missing" in payload)`, true},
		{`"vip" in payload.tags && 1 in payload.tags && !(2 in payload.tags)`, true},
		{`payload.tags[0] == "new" && payload.tags.size() == 3`, true},
		{`payload.tags == ["new", "vip", 1]`, true},
		{`payload.lines.exists(l, l.sku == "b" && l.n > 5)`, true},
		{`payload.lines.all(l, l.n > 5)`, false},
		{`payload.lines.filter(l, l.n > 5).size() == 1`, true},
		{`payload.lines.map(l, l.sku) == ["a", "b"]`, true},
		{`payload.lines[1] == {"n": 9, "sku": "b"}`, true},
		{`payload.customer.name == "Müller"`, true},
		{`payload.customer.name.matches("^M.*r$") && matches(payload.customer.name, "ü")`, true},
		{`payload["a b"] == 1`, true},
		{`payload.twice == 2`, true},
		{`payload.half.endsWith("x")`, true},
		{`payload.deep.er.est[0][1] == 2 && payload.deep.er.est.all(x, x.size() > 0)`, true},
		{`payload == payload`, true},
		{`payload.customer.tags == {}`, true},
		{`payload.missing == 1 || true`, true}, // what is decided without it
		{`payload.exists(k, k == "status")`, true},
		{`type(payload) == map && type(payload.tags) == list && type(payload.count) == double`, true},
	} {
		f, err := Compile(c.filter)
		if err != nil {
			t.Errorf("%s: %v", c.filter, err)
			continue
		}
		if got, err := f.Match(testEvent(order)); err != nil || got != c.want {
			t.Errorf("%s: got %t, %v, want %t", c.filter, got, err, c.want)
		}
	}
}

func TestWithoutPayloadAndTime(t *testing.T) {
	e := NewEvent(&schemas.Event{Name: "a.b", Organization: "acme"}, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	f, err := Compile(`payload == {} && !has(payload.a) && account == "" && subject == "" && time == timestamp("2026-01-02T03:04:05Z")`)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Match(e); err != nil || !got {
		t.Errorf("got %t, %v", got, err)
	}
}

func TestUndecided(t *testing.T) {
	list := `{"s":"` + strings.Repeat("x", maxMatched) + `","t":"` + strings.Repeat("x", maxMatched+1) + `","list":[` + strings.Repeat(`"abcdefgh",`, 20_000) + `""],"a":"q"}`
	for _, c := range []struct {
		filter string
		kind   Kind
		detail string
	}{
		{`payload.missing == 1`, KindEvaluation, "no such key"},
		{`payload.a > 1`, KindEvaluation, "no such overload"},
		{`payload.a`, KindEvaluation, "string"},
		{`payload.list[30000] == "x"`, KindEvaluation, "out of bounds"},
		{`int(payload.a) == 1`, KindEvaluation, ""},
		{`1 / (payload.list.size() - 20001) == 0`, KindEvaluation, "division by zero"},
		{`payload.list.all(x, x != "y")`, KindCost, "steps"},
		{`payload.list.map(x, x + x).size() == 1`, KindCost, "steps"},
		{`[1,2,3,4,5,6,7,8].all(x, payload == payload)`, KindCost, "steps"},
		{`[1,2,3,4,5,6,7,8].all(x, [payload] == [payload])`, KindCost, "steps"},
		{`[1,2,3,4,5,6,7,8].all(x, {"p": payload} == {"p": payload})`, KindCost, "steps"},
		{`[1,2].all(x, !("y" in payload.list))`, KindCost, "steps"},
		{`payload.t.matches("^x*y")`, KindEvaluation, "16384 bytes"},
		{`matches(payload.t, "^x*y")`, KindEvaluation, "16384 bytes"},
	} {
		f, err := Compile(c.filter)
		if err != nil {
			t.Errorf("%s: %v", c.filter, err)
			continue
		}
		got, err := f.Match(testEvent(list))
		var undecided *Error
		if got || !errors.As(err, &undecided) || undecided.Kind != c.kind || !strings.Contains(err.Error(), c.detail) {
			t.Errorf("%s: got %t, %v, want %s with %q", c.filter, got, err, c.kind, c.detail)
		}
	}
	f, err := Compile(`payload.s.matches("^x*$")`)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Match(testEvent(list)); err != nil || !got {
		t.Errorf("a text as long as matches looks at: got %t, %v", got, err)
	}
}

func TestRefused(t *testing.T) {
	long := `event == "` + strings.Repeat("x", schemas.MaxFilterLength-11) + `"`
	if _, err := Compile(long); err != nil {
		t.Errorf("a filter of %d characters: %v", len(long), err)
	}
	for _, c := range []struct{ filter, detail string }{
		{"", "line 1, column 1"},
		{`event ==`, "line 1, column 9"},
		{"event == 'a' &&\n  evnt == 'b'", "line 2, column 3: undeclared reference to 'evnt'"},
		{`event == 1`, "line 1, column 7: found no matching overload"},
		{`event`, "is of the type string"},
		{`payload.size()`, "is of the type int"},
		{`payload.a.matches(payload.b)`, "line 1, column 26: the pattern of matches must be written out"},
		{`payload.a.matches("a" + "b")`, "must be written out"},
		{`matches("a", event)`, "must be written out"},
		{`payload.a.matches("(")`, "missing closing"},
		{`now() > time`, "undeclared reference to 'now'"},
		{`payload.a.replace("a", "b") == ""`, "undeclared reference to 'replace'"},
		{`"a" in ["a", 1, ` + strings.Repeat("(", 300) + "1" + strings.Repeat(")", 300) + `]`, ""},
		{long + " ", "#/filter: expression code point size exceeds limit: size: 4097, limit 4096"},
		{`a.b.c == 1; d; e`, "line 1, column 11"},
	} {
		_, err := Compile(c.filter)
		var refused *schemas.ValidationError
		if !errors.As(err, &refused) || refused.Code() != schemas.CodeInvalidFilter || refused.Fields[0].Pointer != "#/filter" {
			t.Errorf("%.60s: got %v", c.filter, err)
			continue
		}
		if !strings.Contains(err.Error(), c.detail) {
			t.Errorf("%.60s: got %v, want it to say %q", c.filter, err, c.detail)
		}
	}
}

func TestSet(t *testing.T) {
	s := NewSet(2)
	for range 2 {
		for filter, want := range map[string]bool{"": true, `event == "orders.created"`: true, `payload.status == "shut"`: false, `account == "x"`: false} {
			if got, err := s.Match(filter, testEvent(order)); err != nil || got != want {
				t.Errorf("%q: got %t, %v", filter, got, err)
			}
		}
		got, err := s.Match("(", testEvent(order))
		var undecided *Error
		if got || !errors.As(err, &undecided) || undecided.Kind != KindInvalid {
			t.Errorf("a filter that does not compile: got %t, %v", got, err)
		}
	}
	if n := s.filters.Len(); n != 2 {
		t.Errorf("%d filters are kept", n)
	}
}

// FuzzCompile looks for expressions and payloads that end in anything but a decision or an error.
func FuzzCompile(f *testing.F) {
	f.Add(`payload.a.exists(x, x > 1)`, `{"a":[1,2]}`)
	f.Add(`payload == payload && payload.s.matches("a+")`, `{"s":"aaa"}`)
	f.Add(`payload[payload.k] in payload.l`, `{"k":"k","l":[{},[],null,1e999,"\ud800"]}`)
	f.Fuzz(func(t *testing.T, expression, payload string) {
		compiled, err := Compile(expression)
		if err != nil {
			return
		}
		e, err := schemas.DecodePlainEvent([]byte(`{"event":"a.b","organization":"o","payload":` + payload + `}`))
		if err != nil {
			return
		}
		first, err := compiled.Match(NewEvent(&e, time.Unix(1, 0)))
		second, again := compiled.Match(NewEvent(&e, time.Unix(1, 0)))
		if first != second || (err == nil) != (again == nil) {
			t.Errorf("%q on %q: once %t, %v, then %t, %v", expression, payload, first, err, second, again)
		}
	})
}

func benchmark(b *testing.B, expression, payload string) {
	b.Helper()
	f, err := Compile(expression)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		_, _ = f.Match(testEvent(payload)) // costliest: an error
	}
}

func BenchmarkMatch(b *testing.B) {
	b.Run("name", func(b *testing.B) { benchmark(b, `event == "orders.created"`, order) })
	b.Run("two members", func(b *testing.B) {
		benchmark(b, `payload.status in ["open", "active"] && payload.amount > 100`, order)
	})
	list := `{"list":[` + strings.Repeat(`"abcdefgh",`, 20_000) + `""]}`
	b.Run("costliest list", func(b *testing.B) { benchmark(b, `payload.list.all(x, x != "y")`, list) })
	text := `{"s":"` + strings.Repeat("ab", maxMatched/2) + `"}`
	b.Run("costliest pattern", func(b *testing.B) { benchmark(b, `payload.s.matches("(a|b|ab)*[^b]c(x|y|z)+$")`, text) })
	deep := `{"a":` + strings.Repeat(`{"k":[1,2,{"z":"abc"}],"b":`, 50) + `1` + strings.Repeat("}", 50) + `,"s":"` + strings.Repeat("y", 1<<19) + `"}`
	b.Run("costliest comparison", func(b *testing.B) { benchmark(b, `payload == payload`, deep) })
}

func BenchmarkCompile(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(`payload.status in ["open", "active"] && payload.amount > 100`); err != nil {
			b.Fatal(err)
		}
	}
}
