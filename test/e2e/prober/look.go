// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is what the prober prints.
type report struct {
	Finds     []find
	Store     []string // what is in /nix/store
	Mounts    int      // in the first look
	Unmounted int      // how often something could be unmounted
	Truncated bool     // whether a bound was met before all was seen
}

// find is a place where the secret is.
type find struct{ Mount, Path, What string }

// Bounds, far above what a topology has.
const (
	maxEntries = 60000
	maxBytes   = 1 << 30
	maxFile    = 160 << 20
	maxDepth   = 16
)

type file struct{ device, inode uint64 }

type search struct {
	report
	token   []byte
	when    string
	points  []string
	seen    map[file]bool // files without the secret
	entries int
	bytes   int64
}

// without are file systems of the kernel's own making.
var without = []string{"proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"}

// lookAtAll looks at every mount of this mount namespace.
func (s *search) lookAtAll() error {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%s\n", mountinfo) // for who runs one topology alone
	s.points = nil
	var look []string
	for line := range strings.Lines(string(mountinfo)) {
		fields := strings.Fields(line)
		point := unescape(fields[4])
		s.points = append(s.points, point)
		if kind := fields[slices.Index(fields, "-")+1]; !slices.Contains(without, kind) &&
			!slices.Contains(look, point) {
			look = append(look, point)
		}
	}
	s.Mounts = max(s.Mounts, len(s.points))
	for _, point := range look {
		s.walk(point)
	}
	return nil
}

// unmountAll takes off what it can, the last mounted first, and looks at what is
// then there.
func (s *search) unmountAll() error {
	for range 8 {
		progress := false
		for _, point := range slices.Backward(slices.Clone(s.points)) {
			if point == "/" || point == "/proc" || unix.Unmount(point, unix.UMOUNT_NOFOLLOW) != nil {
				continue
			}
			s.Unmounted++
			progress = true
			if i := slices.Index(s.points, point); i >= 0 {
				s.points = slices.Delete(s.points, i, i+1)
			}
			// Also at what is mounted below, that nobody could get at.
			for _, p := range slices.Clone(s.points) {
				if strings.HasPrefix(p, point+"/") {
					s.walk(p)
				}
			}
			s.walk(point)
		}
		if !progress {
			break
		}
	}
	return s.lookAtAll()
}

// walk looks at what is mounted on a path, level by level, without what is mounted
// below it.
func (s *search) walk(point string) {
	level := []string{point}
	for depth := 0; len(level) > 0; depth++ {
		if depth > maxDepth {
			s.Truncated = true
			return
		}
		var next []string
		for _, path := range level {
			info, err := os.Lstat(path)
			if err != nil {
				continue
			}
			s.inspect(point, path, info)
			// Programs and libraries of the host.
			if !info.IsDir() || filepath.Base(path) == "usr" {
				continue
			}
			names, err := os.ReadDir(path)
			if err != nil {
				continue
			}
			for _, n := range names {
				if s.entries++; s.entries > maxEntries {
					s.Truncated = true
					return
				}
				if p := filepath.Join(path, n.Name()); !slices.Contains(s.points, p) {
					next = append(next, p)
				}
			}
		}
		level = next
	}
}

// inspect looks at one file.
func (s *search) inspect(point, path string, info fs.FileInfo) {
	found := func(what string) { s.Finds = append(s.Finds, find{point, path, s.when + what}) }
	switch {
	case bytes.Contains([]byte(filepath.Base(path)), s.token):
		found("its name")
	case info.Mode().Type() == fs.ModeSocket:
		found("a socket")
	case info.Mode().IsRegular() && info.Size() > 0:
		if s.contains(path) {
			found("its content")
		}
	case info.Mode().Type() == fs.ModeDevice:
		if s.contains(path) {
			found("the device's content")
		}
	}
}

// contains tells whether a file has the token in it.
func (s *search) contains(path string) bool {
	f, err := os.OpenFile(path, unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || s.seen[file{st.Dev, st.Ino}] {
		return false
	}
	buffer := make([]byte, 256<<10)
	kept := 0
	for total := 0; ; {
		n, err := f.Read(buffer[kept:])
		total += n
		s.bytes += int64(n)
		if bytes.Contains(buffer[:kept+n], s.token) {
			return true
		}
		if errors.Is(err, io.EOF) {
			s.seen[file{st.Dev, st.Ino}] = true
			return false
		}
		if err != nil {
			return false
		}
		if total > maxFile || s.bytes > maxBytes {
			s.Truncated = true
			return false
		}
		rest := min(len(s.token)-1, kept+n)
		kept = copy(buffer, buffer[kept+n-rest:kept+n])
	}
}

// meet says that the container runs, and waits for the host to have done its part.
func meet(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "ready"), nil, 0o644); err != nil {
		return err
	}
	for range 500 {
		if _, err := os.Stat(filepath.Join(dir, "go")); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("waiting for the host: it never came")
}

// unescape undoes the kernel's \ooo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
