package filter

import (
	lru "github.com/hashicorp/golang-lru/v2"
)

// Kept is how many compiled filters a Set is made for: 3 KB each, 50 MB in all.
const Kept = 16 << 10

// Set keeps the filters that were used last compiled, by their text. A filter is
// compiled when the first event comes to it, in a quarter of a millisecond, and
// not when it is read: a table of 100,000 would take half a minute to read. It may
// be used by several goroutines.
type Set struct {
	filters *lru.Cache[string, compiled]
}

type compiled struct {
	filter *Filter
	err    error
}

// NewSet returns an empty set that keeps that many.
func NewSet(kept int) *Set {
	filters, err := lru.New[string, compiled](kept)
	if err != nil {
		panic("BUG: a set of filters of the size " + err.Error())
	}
	return &Set{filters}
}

// Match says whether an event passes the filter of that text; there is none if it
// is empty. The error is an *Error, as Filter.Match has it.
func (s *Set) Match(expression string, e *Event) (bool, error) {
	if expression == "" {
		return true, nil
	}
	c, known := s.filters.Get(expression)
	if !known {
		c.filter, c.err = Compile(expression)
		s.filters.Add(expression, c)
	}
	if c.err != nil {
		return false, &Error{Kind: KindInvalid, err: c.err}
	}
	return c.filter.Match(e)
}
