// SPDX-License-Identifier: Apache-2.0

package main

// results is all that was measured.
type results struct {
	runtimes []string
	sizes    []int
	cases    []*testCase
	bare     *bare
	// peaks are measured at memoryPaths, and there are none where that is not
	// one of the sizes.
	peaks []peak
	// resolving is nil there too.
	resolving *resolving
	// verified is measured at usualPaths, in the same way.
	verified []verified
}

// find gives the case, whichever number of paths it has where it shows the
// whole store. Nil where there is none.
func (r *results) find(runtime, variant string, paths int) *testCase {
	for _, c := range r.cases {
		if c.runtime.name == runtime && c.variant == variant && (c.wholeStore || c.paths == paths) {
			return c
		}
	}
	return nil
}

// ratio divides the medians of two cases; false where one was not measured.
func ratio(of, to *testCase) (float64, bool) {
	if of == nil || to == nil || len(of.samples) == 0 || len(to.samples) == 0 {
		return 0, false
	}
	return median(of.samples) / median(to.samples), true
}
