// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/nix-closure/nix-closure/closure"
)

// randomGraph makes references from each path to some before it, and to itself.
func randomGraph(random *rand.Rand, paths, roots int) *graph {
	infos := make([]closure.PathInfo, paths)
	shuffled := random.Perm(paths)
	name := func(i int) closure.BaseName { return closure.BaseName(fmt.Sprintf("%032d-p", shuffled[i])) }
	for i := range infos {
		infos[i] = closure.PathInfo{Name: name(i), NarSize: 1 << random.IntN(20)}
		if random.IntN(3) == 0 {
			infos[i].References = append(infos[i].References, name(i))
		}
		for range random.IntN(4) {
			if i > 0 {
				infos[i].References = append(infos[i].References, name(random.IntN(i)))
			}
		}
		slices.Sort(infos[i].References)
		infos[i].References = slices.Compact(infos[i].References)
	}
	var asked []closure.BaseName
	for range roots {
		asked = append(asked, name(random.IntN(paths)))
	}
	slices.SortFunc(infos, func(a, b closure.PathInfo) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	return newGraph(infos, asked)
}

// reachable is the sum of what is reached from some paths without another; -1: none.
func reachable(g *graph, from []int, without int) (sum int64) {
	found := map[int]bool{}
	var visit func(int)
	visit = func(i int) {
		if i == without || found[i] {
			return
		}
		found[i] = true
		sum += g.infos[i].NarSize
		for _, r := range g.references[i] {
			visit(r)
		}
	}
	for _, i := range from {
		visit(i)
	}
	return sum
}

// The sizes are what they are by definition, also where the paths are more than a block.
func TestSizes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, paths := range []int{1, 2, 10, 60, 60, 60, 60, 9000} {
		g := randomGraph(random, paths, 3)
		if len(g.order) != paths {
			t.Fatalf("%d paths, %d in order", paths, len(g.order))
		}
		whole := reachable(g, g.roots, -1)
		for i, s := range g.sizes() {
			if paths > 1000 && i%500 != 0 {
				continue
			}
			closureSize, added := reachable(g, []int{i}, -1), whole-reachable(g, g.roots, i)
			if s.nar != g.infos[i].NarSize || s.closure != closureSize || s.added != added {
				t.Errorf("%d paths: %+v; want closure %d, added %d", paths, s, closureSize, added)
			}
		}
	}
}

// A circle, which no Nix makes, is no reason not to end.
func TestCircle(t *testing.T) {
	name := func(i int) closure.BaseName { return closure.BaseName(fmt.Sprintf("%032d-p", i)) }
	infos := make([]closure.PathInfo, 4)
	for i := range infos {
		infos[i] = closure.PathInfo{Name: name(i), NarSize: 1, References: []closure.BaseName{name((i + 1) % 4)}}
	}
	g := newGraph(infos, []closure.BaseName{name(0)})
	if s := g.sizes(); len(s) != 4 || s[0].added != 4 {
		t.Errorf("%+v", s)
	}
	if chain := g.chain(0, 3); !slices.Equal(chain, []int{0, 1, 2, 3}) {
		t.Errorf("%v", chain)
	}
}
