// SPDX-License-Identifier: Apache-2.0

package mntns

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/settle"
)

func TestMain(m *testing.M) { os.Exit(settle.Run(m.Run)) }

// What f does to its thread is not done to the first one, also where all threads are needed.
func TestOnOwnThread(t *testing.T) {
	before, err := os.Stat("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	const calls = 32
	failed, moved, done := make(chan error), make(chan error), make(chan struct{})
	for range calls {
		go func() {
			failed <- OnOwnThread(func() error {
				moved <- unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
				<-done
				return nil
			})
		}()
	}
	for range calls {
		if err := <-moved; err != nil {
			t.Error(err)
		}
	}
	if now, err := os.Stat("/proc/self/ns/mnt"); err != nil || !os.SameFile(before, now) {
		t.Errorf("the first thread is in another mount namespace: %v", err)
	}
	close(done)
	for range calls {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// The thread is in the other namespace while f runs, and back afterwards, also after an
// error.
func TestDo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("must be root, to make a mount namespace")
	}
	other := exec.Command("sleep", "60")
	other.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = other.Process.Kill(), other.Wait() }()
	pid := strconv.Itoa(other.Process.Pid)
	if same, err := Same("self", pid); same || err != nil {
		t.Fatalf("%v, %v", same, err)
	}
	failed := errors.New("failed")
	for _, want := range []error{nil, failed} {
		err := OnOwnThread(func() error {
			err := DoInProcess(other.Process.Pid, func() error {
				if same, err := Same("thread-self", pid); !same || err != nil {
					t.Errorf("inside: %v, %v", same, err)
				}
				return want
			})
			if same, err := Same("thread-self", "self"); !same || err != nil {
				t.Errorf("afterwards: %v, %v", same, err)
			}
			return err
		})
		if !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if err := DoInProcess(1<<30, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
}
