// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math/bits"
	"slices"
	"strings"

	"github.com/nix-closure/nix-closure/closure"
)

// graph is a closure with what each of its paths references. A path is a number: its
// place in infos, which are sorted by name.
//
// Nix lets no path reference one that references it, so there is an order in which each
// path stands after all that it references, itself aside.
type graph struct {
	infos      []closure.PathInfo
	references [][]int // each path's own, without itself
	referrers  [][]int
	roots      []int // those asked for, then those that nothing references
	isRoot     []bool
	order      []int // references before referrers
}

// newGraph makes the graph of what closure.Restrict returned.
func newGraph(infos []closure.PathInfo, roots []closure.BaseName) *graph {
	g := &graph{
		infos:      infos,
		references: make([][]int, len(infos)),
		referrers:  make([][]int, len(infos)),
	}
	for i, info := range infos {
		for _, name := range info.References {
			if r, ok := g.find(name); ok && r != i {
				g.references[i] = append(g.references[i], r)
				g.referrers[r] = append(g.referrers[r], i)
			}
		}
	}
	g.isRoot = make([]bool, len(infos))
	for _, name := range roots {
		if i, ok := g.find(name); ok {
			g.addRoot(i)
		}
	}
	for i := range infos {
		if len(g.referrers[i]) == 0 {
			g.addRoot(i) // a closure-info lists what no root references
		}
	}
	g.sort()
	return g
}

func (g *graph) addRoot(i int) {
	if !g.isRoot[i] {
		g.isRoot[i] = true
		g.roots = append(g.roots, i)
	}
}

// find returns the number of a path.
func (g *graph) find(name closure.BaseName) (int, bool) {
	return slices.BinarySearchFunc(g.infos, name, func(info closure.PathInfo, name closure.BaseName) int {
		return strings.Compare(string(info.Name), string(name))
	})
}

// sort finds the order, from the roots and depth first.
func (g *graph) sort() {
	g.order = make([]int, 0, len(g.infos))
	next := make([]int, len(g.infos)) // of the references; one more than their number: done
	for _, root := range g.roots {
		stack := []int{root}
		for len(stack) > 0 {
			i := stack[len(stack)-1]
			if next[i] < len(g.references[i]) {
				r := g.references[i][next[i]]
				if next[i]++; next[r] == 0 {
					stack = append(stack, r)
				}
				continue
			}
			if stack = stack[:len(stack)-1]; next[i] == len(g.references[i]) {
				next[i]++
				g.order = append(g.order, i)
			}
		}
	}
}

// sizes are what a path takes, in bytes of its NAR.
type sizes struct {
	nar     int64 // the path itself
	closure int64 // with all that it references
	added   int64 // what the whole closure would not have without the path
}

func (g *graph) sizes() []sizes {
	all := make([]sizes, len(g.infos))
	closures, added := g.closureSizes(), g.addedSizes()
	for i, info := range g.infos {
		all[i] = sizes{nar: info.NarSize, closure: closures[i], added: added[i]}
	}
	return all
}

// closureSizes finds out which paths each path reaches, for a block of them at a time:
// a bit for each pair would be 300 MB for the largest closure that is allowed.
func (g *graph) closureSizes() []int64 {
	const words, block = 64, 64 * 64
	total := make([]int64, len(g.infos))
	reached := make([][words]uint64, len(g.infos))
	for first := 0; first < len(g.order); first += block {
		clear(reached)
		// What stands before the block in the order reaches nothing in it.
		for at := first; at < len(g.order); at++ {
			i := g.order[at]
			set := &reached[i]
			if at < first+block {
				set[(at-first)/64] |= 1 << ((at - first) % 64)
			}
			for _, r := range g.references[i] {
				for w, word := range reached[r] {
					set[w] |= word
				}
			}
			for w, word := range set {
				for ; word != 0; word &= word - 1 {
					total[i] += g.infos[g.order[first+64*w+bits.TrailingZeros64(word)]].NarSize
				}
			}
		}
	}
	return total
}

// addedSizes finds the dominators (Cooper, Harvey and Kennedy, "A Simple, Fast Dominance
// Algorithm"): a path goes with another if every way from the roots to it leads through
// the other. In an order like this graph's, one pass finds them.
func (g *graph) addedSizes() []int64 {
	above := len(g.order) // the place of what stands above all roots
	place := make([]int, len(g.infos))
	for at, i := range g.order {
		place[i] = at
	}
	dominator := make([]int, len(g.order)) // by place
	for at := len(g.order) - 1; at >= 0; at-- {
		i, d := g.order[at], -1
		if g.isRoot[i] {
			d = above
		}
		for _, referrer := range g.referrers[i] {
			p := place[referrer]
			if p < at {
				continue // a circle, which Nix does not make
			}
			for d >= 0 && p != d {
				if p < d {
					p = dominator[p]
				} else {
					d = dominator[d]
				}
			}
			d = p
		}
		if d < 0 {
			d = above
		}
		dominator[at] = d
	}
	added := make([]int64, len(g.infos))
	for at, i := range g.order {
		added[i] += g.infos[i].NarSize
		if d := dominator[at]; d != above {
			added[g.order[d]] += added[i]
		}
	}
	return added
}

// chain returns a shortest chain of references from one path to another, or nil.
func (g *graph) chain(from, to int) []int {
	by := make([]int, len(g.infos)) // who led to a path, plus one
	by[from] = from + 1
	for queue := []int{from}; len(queue) > 0 && by[to] == 0; queue = queue[1:] {
		for _, r := range g.references[queue[0]] {
			if by[r] == 0 {
				by[r] = queue[0] + 1
				queue = append(queue, r)
			}
		}
	}
	if by[to] == 0 {
		return nil
	}
	chain := []int{to}
	for i := to; i != from; {
		i = by[i] - 1
		chain = append(chain, i)
	}
	slices.Reverse(chain)
	return chain
}

// leading returns the paths from which references lead to a path, in the order from the
// roots down, itself last.
func (g *graph) leading(to int) []int {
	found := make([]bool, len(g.infos))
	found[to] = true
	for queue := []int{to}; len(queue) > 0; queue = queue[1:] {
		for _, r := range g.referrers[queue[0]] {
			if !found[r] {
				found[r] = true
				queue = append(queue, r)
			}
		}
	}
	var all []int
	for _, i := range slices.Backward(g.order) {
		if found[i] {
			all = append(all, i)
		}
	}
	return all
}
