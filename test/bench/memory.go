// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// peak is the hook's largest peak memory in the life of one container.
type peak struct {
	state, mode string // "cold" or "warm", "overlay" or "bind"
	mib         float64
}

// measureMemory runs containers whose hook is the hook, measured.
func (h *host) measureMemory(r *containerRuntime, paths int, p *progress) ([]peak, error) {
	var peaks []peak
	for _, mode := range []string{"overlay", "bind"} {
		p.show("memory, %s", mode)
		dir := filepath.Join(h.dir, "bundles", "memory", mode)
		peaksFile := filepath.Join(dir, "peaks")
		b := bundle{
			root:        h.image,
			hooks:       bothStages(h.programs.measure, append([]string{peaksFile, h.hook}, h.cold.args()...)...),
			annotations: h.annotations(paths, mode),
		}
		if err := b.write(dir, "/bin/true"); err != nil {
			return nil, err
		}
		if err := h.cold.forget(); err != nil {
			return nil, err
		}
		// The second container finds what the first one left.
		for _, state := range []string{"cold", "warm"} {
			if _, err := r.time(dir); err != nil {
				return nil, fmt.Errorf("memory, %s, %s: %w", mode, state, err)
			}
			mib, err := takePeak(peaksFile)
			if err != nil {
				return nil, err
			}
			peaks = append(peaks, peak{state, mode, mib})
		}
	}
	return peaks, nil
}

// takePeak reads the largest number of the file, removes the file, and gives
// the number in MiB.
func takePeak(file string) (float64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	largest := 0
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		kib, err := strconv.Atoi(lines.Text())
		if err != nil {
			return 0, err
		}
		largest = max(largest, kib)
	}
	return float64(largest) / 1024, errors.Join(lines.Err(), os.Remove(file))
}
