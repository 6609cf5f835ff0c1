package registry

import (
	"slices"
	"sync"
)

// table holds the rows of one compacted topic by id, and their ids in order.
type table[T any] struct {
	organization func(*T) string

	mu   sync.RWMutex // guards the rest; rows themselves are never changed, only replaced
	rows map[string]*T
	ids  map[string][]string // by organization, ascending; under "" the ids of all
}

func newTable[T any](organization func(*T) string) *table[T] {
	return &table[T]{organization: organization, rows: map[string]*T{}, ids: map[string][]string{}}
}

// get returns the row under id, nil if there is none.
func (t *table[T]) get(id string) *T {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.rows[id]
}

func (t *table[T]) put(id string, row *T) {
	t.mu.Lock()
	defer t.mu.Unlock()
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
	if old, ok := t.rows[id]; ok {
		t.removeLocked(id, old)
	}
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

// page returns up to limit rows of organization (of all if it is empty) whose
// ids sort after the given one, and whether there are more behind them.
func (t *table[T]) page(organization, after string, limit int) (rows []T, more bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	ids := t.ids[organization]
	from, found := slices.BinarySearch(ids, after)
	if found {
		from++
	}
	ids = ids[from:]
	if more = len(ids) > limit; more {
		ids = ids[:limit]
	}
	rows = make([]T, 0, len(ids))
	for _, id := range ids {
		rows = append(rows, *t.rows[id])
	}
	return rows, more
}

// replace puts the rows of another table, which is used no more, in the place of these.
func (t *table[T]) replace(with *table[T]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows, t.ids = with.rows, with.ids
}

func (t *table[T]) size() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.rows)
}
