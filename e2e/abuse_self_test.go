//go:build unix

package e2e

import (
	"strings"
	"testing"
)

// TestAbuseCounts checks what the suite counts with.
func TestAbuseCounts(t *testing.T) {
	for _, tc := range []struct {
		name                           string
		heard                          []uint64
		missing, duplicated, reordered int
	}{
		{"in order", []uint64{0, 1, 2}, 0, 0, 0},
		{"a hole", []uint64{0, 3}, 2, 0, 0},
		{"a hole filled late", []uint64{0, 2, 1}, 0, 0, 1},
		{"twice", []uint64{0, 1, 1, 0}, 0, 2, 0},
	} {
		g := heardOf{missing: make(map[uint64]struct{})}
		for _, seq := range tc.heard {
			g.add(seq)
		}
		if len(g.missing) != tc.missing || g.duplicated != tc.duplicated || g.reordered != tc.reordered {
			t.Errorf("%s: %d missing, %d duplicated, %d reordered; want %d, %d, %d",
				tc.name, len(g.missing), g.duplicated, g.reordered, tc.missing, tc.duplicated, tc.reordered)
		}
	}
	before := footprint{rss: 20 << 20, heap: 4 << 20, goroutines: 40, descriptors: 20}
	if s := before.over(before); s != "" {
		t.Errorf("as before, and yet %s", s)
	}
	after := before
	after.heap += 3 * heapKept
	after.goroutines += 3 * goroutinesKept
	if s := after.over(before); !strings.Contains(s, "heap") || !strings.Contains(s, "goroutines") || strings.Contains(s, "resident") {
		t.Errorf("more heap and goroutines are told as %q", s)
	}
}
