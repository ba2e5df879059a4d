// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/mntns"
	"github.com/nix-closure/nix-closure/internal/settle"
)

func TestMain(m *testing.M) { os.Exit(settle.Run(m.Run)) }

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestStartTime(t *testing.T) {
	self := os.Getpid()
	want, err := StartTime(self)
	if err != nil || want == 0 {
		t.Fatalf("%d, %v", want, err)
	}
	// A process may call itself what it likes.
	name, err := os.ReadFile("/proc/self/comm")
	must(t, err)
	defer func() { must(t, os.WriteFile("/proc/self/comm", name, 0)) }()
	for _, odd := range []string{") R 1 2 3 4 5", "((((", "))))", "a b c d", "\n", ") Z 0 0 0 0 0 "} {
		must(t, os.WriteFile("/proc/self/comm", []byte(odd), 0))
		if got, err := StartTime(self); err != nil || got != want {
			t.Errorf("named %q: %d, %v; want %d", odd, got, err, want)
		}
	}
	if first, err := StartTime(1); err != nil || first > want {
		t.Errorf("process 1 started at %d, this one at %d: %v", first, want, err)
	}
	for _, pid := range []int{0, -1, 1 << 30} {
		if got, err := StartTime(pid); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("process %d: %d, %v", pid, got, err)
		}
	}
}

// initTest says how deep TestInitProcess is in the processes that it starts.
const initTest = "NIX_CLOSURE_TEST_INIT"

// The container's process is the oldest one in its mount namespace, however many are
// between it and the hook, and by its number on the host.
func TestInitProcess(t *testing.T) {
	start := func(depth int, attr syscall.SysProcAttr) (pid int, said string) {
		t.Helper()
		c := exec.Command("/proc/self/exe", "-test.run", "^TestInitProcess$")
		c.Env = append(os.Environ(), initTest+"="+strconv.Itoa(depth))
		c.SysProcAttr = &attr
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		said, _, _ = strings.Cut(string(out), "\n")
		return c.Process.Pid, said
	}
	if depth, err := strconv.Atoi(os.Getenv(initTest)); err == nil {
		said := strconv.Itoa(InitProcess())
		if depth > 0 {
			_, said = start(depth-1, syscall.SysProcAttr{})
		}
		fmt.Println(said)
		return
	}
	if os.Geteuid() != 0 {
		t.Fatal("must be root, to make namespaces")
	}
	for name, attr := range map[string]syscall.SysProcAttr{
		"a mount namespace":   {Unshareflags: syscall.CLONE_NEWNS},
		"and a PID namespace": {Unshareflags: syscall.CLONE_NEWNS, Cloneflags: syscall.CLONE_NEWPID},
		"and another user's ID": {Unshareflags: syscall.CLONE_NEWNS,
			Credential: &syscall.Credential{Uid: 1000, Gid: 1000}},
	} {
		for depth := 1; depth <= 3; depth++ {
			if pid, got := start(depth, attr); got != strconv.Itoa(pid) {
				t.Errorf("%s, %d processes between: %s, want %d", name, depth, got, pid)
			}
		}
	}
	defer func(before string) { Dir = before }(Dir)
	Dir = t.TempDir()
	if got := InitProcess(); got != -1 {
		t.Errorf("without /proc: %d, want -1", got)
	}
}

// AwaitEnd returns when the process ends, and does not wait longer than it may.
func TestAwaitEnd(t *testing.T) {
	sleep := exec.Command("sleep", "0.2")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	AwaitEnd(sleep.Process.Pid, time.Minute)
	if _, err := StartTime(sleep.Process.Pid); !IsGone(err) {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	if err := sleep.Wait(); err != nil {
		t.Error(err)
	}
	began = time.Now()
	AwaitEnd(os.Getpid(), 20*time.Millisecond)
	AwaitEnd(1<<30, time.Minute)
	if took := time.Since(began); took < 20*time.Millisecond || took > 30*time.Second {
		t.Errorf("waited %s", took)
	}
}

// The mounts in a directory are read by their names in it, also one that another covers,
// and no others. The thread has its own root directory again.
func TestReadMountinfoIn(t *testing.T) {
	dir := t.TempDir()
	err := mntns.OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		for _, point := range []string{dir, dir + "/a", dir + "/a/b", dir + "/a"} {
			if err := errors.Join(os.MkdirAll(point, 0o755), unix.Mount("tmpfs", point, "tmpfs", 0, "")); err != nil {
				return err
			}
		}
		before, err := os.Stat("/")
		if err != nil {
			return err
		}
		root, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		text, err := ReadMountinfoIn(int(root.Fd()))
		if err != nil {
			return err
		}
		var points []string
		for line := range strings.Lines(string(text)) {
			points = append(points, strings.Fields(line)[4])
		}
		slices.Sort(points)
		if want := []string{"/", "/a", "/a", "/a/b"}; !slices.Equal(points, want) {
			t.Errorf("the mounts are on %q, want %q", points, want)
		}
		if after, err := os.Stat("/"); err != nil || !os.SameFile(before, after) {
			t.Errorf("the thread has another root directory: %v", err)
		}
		if _, err := ReadMountinfoIn(-1); err == nil || errors.Is(err, ErrLost) {
			t.Errorf("no directory: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
