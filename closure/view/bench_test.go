// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
)

// BenchmarkBind measures the time of bind mode for each store path, on the clock and of the
// thread that mounts. See test/bench/bindfloor for that of the kernel's four calls alone.
func BenchmarkBind(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const paths = 1000
	store := closure.Store{Dir: b.TempDir()}
	var names []closure.BaseName
	for i := range paths {
		name := closure.BaseName(fmt.Sprintf("%032d-package-%d", i, i))
		if err := os.Mkdir(store.Path(name), 0o755); err != nil {
			b.Fatal(err)
		}
		names = append(names, name)
	}
	c := closure.New(store, names)
	target := b.TempDir()
	var thread int64
	var clock time.Duration
	for b.Loop() {
		dir, err := os.Open(target)
		if err != nil {
			b.Fatal(err)
		}
		v, err := NewBind(store, c, Options{Listed: true})
		if err != nil {
			b.Fatal(err)
		}
		before, began := threadTime(b), time.Now()
		if err := v.Attach(dir); err != nil {
			b.Fatal(err)
		}
		thread += threadTime(b) - before
		clock += time.Since(began)
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			b.Fatal(err)
		}
		if err := v.Close(); err != nil {
			b.Fatal(err)
		}
		dir.Close()
	}
	b.ReportMetric(float64(thread)/float64(b.N)/paths/1000, "thread-µs/path")
	b.ReportMetric(float64(clock.Microseconds())/float64(b.N)/paths, "µs/path")
}

// threadTime returns this thread's processor time in nanoseconds.
func threadTime(b *testing.B) int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return t.Nano()
}
