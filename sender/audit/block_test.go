package audit

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestPendingText(t *testing.T) {
	deadline := time.UnixMilli(1_760_000_000_123)
	for _, test := range []struct {
		name      string
		committed int64
		text      string
		want      pending
		err       error
	}{
		{"no block", 5, "", pending{}, nil},
		{"a block", 5, "1 9 1760000000123", pending{9, deadline}, nil},
		{"a newer format", 5, "2 9 1760000000123", pending{}, errBadMetadata},
		{"kgo's default, the member id", 5, "kgo-3f2c", pending{}, errBadMetadata},
		{"an end that is not behind the offset", 9, "1 9 1760000000123", pending{}, errBadMetadata},
		{"no number", 5, "1 x 1760000000123", pending{}, errBadMetadata},
		{"no deadline", 5, "1 9 soon", pending{}, errBadMetadata},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := parsePending(test.committed, test.text)
			if !errors.Is(err, test.err) || got.end != test.want.end || !got.deadline.Equal(test.want.deadline) {
				t.Errorf("got %v, %v, want %v, %v", got, err, test.want, test.err)
			}
		})
	}
	if got := (pending{}).text(); got != "" {
		t.Errorf("text of no block is %q", got)
	}
}

func TestPendingTextComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		committed := rapid.Int64Range(0, 1<<62).Draw(t, "committed")
		p := pending{committed + rapid.Int64Range(1, 1<<40).Draw(t, "length"), time.UnixMilli(rapid.Int64Range(0, 1<<45).Draw(t, "deadline"))}
		got, err := parsePending(committed, p.text())
		if err != nil || got.end != p.end || !got.deadline.Equal(p.deadline) {
			t.Fatalf("%q came back as %v, %v", p.text(), got, err)
		}
	})
}

func TestTokenNamesItsRows(t *testing.T) {
	one := bounds{[16]byte{1}, 2, 3, 4}
	list := []bounds{one, {[16]byte{1}, 3, 0, 9}, {[16]byte{9}, 2, 3, 4}}
	want := token(1, "outcomes", list, 12)
	for range 10 {
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		if got := token(1, "outcomes", list, 12); got != want {
			t.Errorf("in another order got %s, want %s", got, want)
		}
	}
	others := []string{
		want,
		token(2, "outcomes", list, 12),
		token(1, "changes", list, 12),
		token(1, "outcomes", list, 11),
		token(1, "outcomes", list[:2], 12),
		token(1, "outcomes", []bounds{{[16]byte{2}, 2, 3, 4}}, 1),
		token(1, "outcomes", []bounds{{[16]byte{1}, 1, 3, 4}}, 1),
		token(1, "outcomes", []bounds{{[16]byte{1}, 2, 2, 4}}, 1),
		token(1, "outcomes", []bounds{{[16]byte{1}, 2, 3, 5}}, 1),
		token(1, "outcomes", []bounds{one}, 1),
	}
	slices.Sort(others)
	if len(slices.Compact(slices.Clone(others))) != len(others) {
		t.Errorf("two lists share a token: %q", others)
	}
}
