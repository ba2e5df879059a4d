// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time, written as "100s" or "2m30s".
type Duration time.Duration

// Size is a number of bytes, written with or without K, M, G or T (powers of 1024) at the
// end.
type Size int64

// The limits of what a configuration may say. The largest are more than any host has: a
// larger number is a mistake.
const (
	mostPaths    = 10_000_000
	mostInodes   = 1 << 40
	smallestSize = 4096 // a page of memory
	largestSize  = 1 << 50
	shortest     = time.Second
	longest      = 24 * time.Hour
)

// units are the keys whose values are sizes, times and numbers, as they are written. A
// missing key (nil) and an empty text mean the default. No other value does: a number that
// could mean "none" or "no limit" is refused.
type units struct {
	SubstituteTimeout any `toml:"substitute-timeout"`
	MaxPaths          any `toml:"max-paths"`
	WritableSize      any `toml:"writable-size"`
	RuntimeInodes     any `toml:"runtime-inodes"`
	RuntimeSize       any `toml:"runtime-size"`
}

// apply parses the values.
func (u units) apply(c *Config) error {
	maxPaths := int64(c.MaxPaths)
	for _, v := range []struct {
		key   string
		value any
		read  func(value any) error
	}{
		{"substitute-timeout", u.SubstituteTimeout, c.SubstituteTimeout.read},
		{"max-paths", u.MaxPaths, number(&maxPaths, mostPaths)},
		{"writable-size", u.WritableSize, c.WritableSize.read},
		{"runtime-inodes", u.RuntimeInodes, number(&c.RuntimeInodes, mostInodes)},
		{"runtime-size", u.RuntimeSize, c.RuntimeSize.read},
	} {
		if v.value == nil || v.value == "" {
			continue
		}
		if err := v.read(v.value); err != nil {
			return fmt.Errorf("%s = %s: %w; leave it out for the default", v.key, written(v.value), err)
		}
	}
	c.MaxPaths = int(maxPaths)
	return nil
}

// written returns a value as the reader finds it in the file.
func written(value any) string {
	if text, ok := value.(string); ok {
		return strconv.Quote(text)
	}
	return fmt.Sprint(value)
}

func (d *Duration) read(value any) error {
	text, _ := value.(string)
	parsed, err := time.ParseDuration(text)
	if err != nil {
		return errors.New(`no length of time like "100s" or "2m"`)
	}
	if parsed < shortest || parsed > longest {
		return errors.New("not from 1s to 24h")
	}
	*d = Duration(parsed)
	return nil
}

var errNoSize = errors.New(`no size like "512M" or "2G"`)

func (s *Size) read(value any) error {
	text := fmt.Sprint(value)
	digits := strings.TrimRight(text, "KMGT")
	unit := int64(1)
	if suffix := text[len(digits):]; len(suffix) == 1 {
		unit = 1 << (10 * (1 + strings.Index("KMGT", suffix)))
	} else if suffix != "" {
		return errNoSize
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return errNoSize
	}
	if err != nil || n > math.MaxInt64/unit || n*unit < smallestSize || n*unit > largestSize {
		return fmt.Errorf("not from %d (bytes) to 1024T", smallestSize)
	}
	*s = Size(n * unit)
	return nil
}

// number parses a number from 1 to most.
func number(to *int64, most int64) func(value any) error {
	return func(value any) error {
		n, ok := value.(int64)
		if !ok || n < 1 || n > most {
			return fmt.Errorf("not a number from 1 to %d", most)
		}
		*to = n
		return nil
	}
}
