package registry

import (
	"fmt"
	"slices"
	"sync"

	"github.com/postrider/postrider/schemas"
)

// table holds the rows of one compacted topic by id, and their ids in order.
type table[T any] struct {
	organization func(*T) string

	mu   sync.RWMutex // guards the rest; rows themselves are never changed, only replaced
	rows map[string]*T
	ids  map[string][]string // by organization, ascending; under "" the ids of all
	// unreadable are, by id, the rows that only a newer binary can read. They are
	// not in rows: what stood there before is no longer true.
	unreadable map[string]*schemas.UnknownVersionError
}

func newTable[T any](organization func(*T) string) *table[T] {
	return &table[T]{
		organization: organization, rows: map[string]*T{}, ids: map[string][]string{}, unreadable: map[string]*schemas.UnknownVersionError{},
	}
}

// get returns the row under id, nil if there is none, ErrUnavailable if it is unreadable.
func (t *table[T]) get(id string) (*T, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if newer, ok := t.unreadable[id]; ok {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, newer)
	}
	return t.rows[id], nil
}

func (t *table[T]) put(id string, row *T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.unreadable, id)
	if old, ok := t.rows[id]; ok {
		if t.organization(old) == t.organization(row) {
			t.rows[id] = row
			return
		}
		t.removeLocked(id, old)
	}
	t.rows[id] = row
	for _, key := range indexKeys(t.organization(row)) {
		ids := t.ids[key]
		// Ids made later sort later, so this is nearly always an append.
		at, _ := slices.BinarySearch(ids, id)
		t.ids[key] = slices.Insert(ids, at, id)
	}
}

func (t *table[T]) remove(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.unreadable, id)
	if old, ok := t.rows[id]; ok {
		t.removeLocked(id, old)
	}
}

// putUnreadable says that what stands under id now only a newer binary can read,
// until the id is put or removed again.
func (t *table[T]) putUnreadable(id string, newer *schemas.UnknownVersionError) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old, ok := t.rows[id]; ok {
		t.removeLocked(id, old)
	}
	t.unreadable[id] = newer
}

func (t *table[T]) removeLocked(id string, old *T) {
	delete(t.rows, id)
	for _, key := range indexKeys(t.organization(old)) {
		if at, found := slices.BinarySearch(t.ids[key], id); found {
			t.ids[key] = slices.Delete(t.ids[key], at, at+1)
		}
		if len(t.ids[key]) == 0 {
			delete(t.ids, key)
		}
	}
}

// indexKeys returns where a row of organization is listed: a row of none, such
// as a key for all organizations, among all rows only.
func indexKeys(organization string) []string {
	if organization == "" {
		return []string{""}
	}
	return []string{"", organization}
}

// page returns up to limit rows of organization (of all if it is empty) that are
// kept (nil: all are) and whose ids sort after the given one, and whether there may be
// more behind them. While a row is unreadable every page is ErrUnavailable: whose it is
// nobody here can tell, so any page may lack it.
func (t *table[T]) page(organization, after string, limit int, keep func(*T) bool) (rows []T, more bool, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if newer := t.newerLocked(); newer != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrUnavailable, newer)
	}
	ids := t.ids[organization]
	from, found := slices.BinarySearch(ids, after)
	if found {
		from++
	}
	rows = make([]T, 0, min(len(ids)-from, limit))
	for _, id := range ids[from:] {
		row := t.rows[id]
		switch {
		case keep != nil && !keep(row):
		case len(rows) == limit:
			return rows, true, nil
		default:
			rows = append(rows, *row)
		}
	}
	return rows, false, nil
}

// newer returns why a row is unreadable; nil if none is.
func (t *table[T]) newer() *schemas.UnknownVersionError {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.newerLocked()
}

func (t *table[T]) newerLocked() *schemas.UnknownVersionError {
	for _, newer := range t.unreadable {
		return newer
	}
	return nil
}

// replace puts the rows of another table, which is used no more, in the place of these.
func (t *table[T]) replace(with *table[T]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows, t.ids, t.unreadable = with.rows, with.ids, with.unreadable
}

// count is how many rows organization has.
func (t *table[T]) count(organization string) int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.ids[organization])
}

func (t *table[T]) size() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.rows)
}
