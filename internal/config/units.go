// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time, written "100s" or "2m30s".
type Duration time.Duration

// UnmarshalText reads a Duration.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no length of time like 100s or 2m", text)
	}
	*d = Duration(parsed)
	return nil
}

// Size is a number of bytes, written as a number with or without K, M, G or T
// (powers of 1024) after it.
type Size int64

// smallestSize is a page of memory.
const smallestSize = 4096

// UnmarshalText reads a Size. An empty text is 0.
func (s *Size) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*s = 0
		return nil
	}
	digits := strings.TrimRight(string(text), "KMGT")
	unit := int64(1)
	if suffix := string(text)[len(digits):]; suffix != "" {
		unit = 1 << (10 * (1 + strings.Index("KMGT", suffix)))
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || len(text) > len(digits)+1 || int64(n) > math.MaxInt64/unit {
		return fmt.Errorf("%q is no size like 512M or 2G", text)
	}
	*s = Size(int64(n) * unit)
	return nil
}
