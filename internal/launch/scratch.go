// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// BecomeRoot makes an ordinary user root of a user namespace of its own: it starts this
// program again, with the same arguments, in one. For root it does nothing. severalUsers:
// the container needs more users than one, which are the subordinate ones of the user
// (subuid(5)).
//
// A process with threads, as every Go program is, cannot make a user namespace for
// itself; unshare(1) can, and becomes this program.
func BecomeRoot(severalUsers bool) error {
	if os.Geteuid() == 0 {
		return nil
	}
	//nolint:forbidigo // the environment is the operator's
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return fmt.Errorf("an ordinary user needs unshare(1) of util-linux: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"unshare", "--user", "--map-root-user"}
	if severalUsers {
		args = append(args, "--map-auto")
	}
	args = append(append(args, "--", self), os.Args[1:]...)
	if err := unix.Exec(unshare, args, os.Environ()); err != nil {
		return &os.PathError{Op: "exec", Path: unshare, Err: err}
	}
	return nil
}

// scratch is where one container's bundle is: a tmpfs that only this process and its
// children see, in a mount namespace of their own. It goes with the last of them, whatever
// ends them.
type scratch struct{ dir string }

func (s scratch) bundle() string { return s.dir + "/bundle" }
func (s scratch) rootfs() string { return s.bundle() + "/rootfs" }
func (s scratch) state() string  { return s.dir + "/state" }
func (s scratch) log() string    { return s.dir + "/log" }

// newScratch makes one. The calling goroutine stays on its thread, which alone is in the
// mount namespace; what it starts is there too.
func newScratch(dir string) (scratch, error) {
	s := scratch{dir}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return s, os.NewSyscallError("unshare", err)
	}
	// What the host mounts and unmounts is still seen here, and nothing of this there.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return s, &os.PathError{Op: "mount", Path: "/", Err: err}
	}
	for _, m := range []struct{ dir, mode string }{{s.dir, "0700"}, {s.rootfs(), "0755"}} {
		if err := os.MkdirAll(m.dir, 0o700); err != nil {
			return s, err
		}
		err := unix.Mount("nix-closure-run", m.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode="+m.mode)
		if err != nil {
			return s, &os.PathError{Op: "mount", Path: m.dir, Err: err}
		}
	}
	return s, os.Mkdir(s.state(), 0o700)
}

// fill writes the bundle.
func (s scratch) fill(c Container, rootless bool) error {
	text, err := json.Marshal(c.config(s.rootfs(), rootless))
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.bundle()+"/config.json", text, 0o600); err != nil {
		return err
	}
	if !c.HostNetwork {
		return nil
	}
	// Copies, as engines make them: what is bound would show the host's file system, on
	// NixOS the store.
	for _, path := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		content, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		to := s.rootfs() + path
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
