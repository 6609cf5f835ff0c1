package audit

import "testing"

func TestFitting(t *testing.T) {
	of := []Delivery{{EventID: "a"}, {EventID: "b"}, {EventID: "c"}, {EventID: "d"}}
	sizes := func(sizes ...int) map[eventKey]int {
		m := map[eventKey]int{}
		for i, size := range sizes {
			m[keyOf(&of[i])] = size
		}
		return m
	}
	for _, c := range []struct {
		sizes map[eventKey]int
		want  int
	}{
		{sizes(), 4},
		{sizes(1, 2, 3, 4), 4},
		{sizes(maxEventBytes, 0, 0, 1), 3},
		{sizes(maxEventBytes/2, maxEventBytes/2, 1, 0), 2},
		{sizes(2*maxEventBytes, 1, 1, 1), 1},
	} {
		if got := fitting(of, c.sizes); got != c.want {
			t.Errorf("fitting(%v) = %d, want %d", c.sizes, got, c.want)
		}
	}
}
