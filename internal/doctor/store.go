// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/nixdb"
)

// schema is the version of Nix's database that this program reads.
const schema = "10"

// store looks at the store, Nix's state directory and its database.
func (e *exam) store(ctx context.Context) {
	store := e.config.Store()
	info, err := os.Stat(store.Dir)
	if err != nil || !info.IsDir() {
		e.find(Finding{
			ID: "store", Severity: Closed, What: "the store directory " + store.Dir + " is not there",
			Consequence: "no container with an annotation starts",
			Advice:      "mount it, or name it as store-dir in " + e.Config,
		})
		return
	}
	if mode := info.Mode(); mode.Perm()&0o002 != 0 {
		e.find(Finding{
			ID: "store-mode", Severity: Warning, What: fmt.Sprintf("everybody can write to %s (mode %04o)", store.Dir,
				mode.Perm()),
			Consequence: "users can put files into the store that Nix does not know of",
			Fix:         []string{"chmod o-w " + quote(store.Dir)},
		})
	}
	var st unix.Statfs_t
	if err := unix.Statfs(store.Dir, &st); err == nil && st.Flags&unix.ST_NOEXEC != 0 {
		e.find(Finding{
			ID: "store-noexec", Severity: Warning, What: store.Dir + " is mounted noexec",
			Consequence: "in mode bind, containers cannot start the programs of their closure",
			Fix:         []string{"mount -o remount,bind,exec " + quote(mountPoint(store.Dir))},
		})
	}
	e.mountsInStore(store.Dir)
	e.stateDir()
	e.database(ctx)
	program, err := e.nixStore()
	if err != nil {
		f := Finding{
			ID: "nix-store", Severity: Warning, What: oneLine(err),
			Consequence: "while Nix's garbage collector runs, no container with an annotation starts",
			Advice:      "name the program as nix-store in " + e.Config,
		}
		if e.config.NixStore != "" {
			f.Fix = []string{`sed -i '/^[[:space:]]*nix-store[[:space:]]*=/d' ` + quote(e.Config)}
		}
		if e.config.Substitute {
			f.Severity, f.Consequence = Closed, f.Consequence+"; nor does one whose root must be fetched"
		}
		e.find(f)
		return
	}
	e.fact("nix-store", program)
}

// nixStore is the program by the name that the configuration has, or at the usual places.
func (e *exam) nixStore() (string, error) {
	program, err := closure.NixStore{Program: e.config.NixStore}.Path()
	if err != nil {
		return "", err
	}
	info, err := os.Stat(program)
	if err != nil {
		return "", fmt.Errorf("nix-store = %q: %w", program, err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("nix-store = %q: cannot be started (mode %s)", program, info.Mode())
	}
	return program, nil
}

// mountsInStore: an overlay does not show what is mounted below the store directory.
func (e *exam) mountsInStore(dir string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		e.unknown("", "mounts in the store", err)
		return
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir+"/") {
			continue
		}
		e.find(Finding{
			ID: "store-mounts", Severity: Warning, What: "something is mounted in the store, at " + fields[4],
			Consequence: "containers with this store path cannot have an overlay",
			Fix:         []string{"umount " + quote(fields[4])},
		})
	}
}

// stateDir looks at who can change Nix's state directory, and at gc.lock.
func (e *exam) stateDir() {
	store := e.config.Store()
	var st unix.Stat_t
	if err := unix.Stat(store.StateDir, &st); err != nil {
		e.find(Finding{
			ID: "state-dir", Severity: Closed, What: "Nix's state directory " + store.StateDir + " is not there",
			Consequence: "no container with an annotation starts",
			Advice:      "install Nix for many users, or name it as state-dir in " + e.Config,
		})
		return
	}
	if e.config.Rootless {
		return
	}
	if st.Uid != 0 {
		e.find(Finding{
			ID: "state-dir-owner", Severity: Closed,
			What:        fmt.Sprintf("%s belongs to user %d, not to root", store.StateDir, st.Uid),
			Consequence: "no GC root of a container can be made there, and none with an annotation starts",
			Fix:         []string{"chown root:root " + quote(store.StateDir)},
		})
	}
	if st.Mode&0o022 != 0 {
		e.find(Finding{
			ID: "state-dir-mode", Severity: Closed,
			What:        fmt.Sprintf("others than root can change %s (mode %04o)", store.StateDir, st.Mode&0o7777),
			Consequence: "no GC root of a container can be made there, and none with an annotation starts",
			Fix:         []string{"chmod go-w " + quote(store.StateDir)},
		})
	}
	lock := store.StateDir + "/gc.lock"
	info, err := os.Lstat(lock)
	if err != nil {
		return // Nix or the hook makes it
	}
	own, ok := info.Sys().(*syscall.Stat_t)
	remove := "rm "
	if info.IsDir() {
		remove = "rmdir "
	}
	switch {
	case !info.Mode().IsRegular():
		e.find(Finding{
			ID: "gc-lock", Severity: Closed, What: lock + " is not a regular file",
			Consequence: "no container with an annotation starts", Fix: []string{remove + quote(lock)},
		})
	case ok && (own.Uid != 0 || own.Mode&0o066 != 0):
		e.find(Finding{
			ID: "gc-lock-mode", Severity: Warning,
			What: fmt.Sprintf("others than root can hold %s (owner %d, mode %04o)", lock, own.Uid,
				own.Mode&0o777),
			Consequence: "they can keep containers from starting, and the collector from running",
			Fix:         []string{"chown root:root " + quote(lock) + " && chmod 0600 " + quote(lock)},
		})
	}
}

// database looks whether the closures of roots can be read.
func (e *exam) database(ctx context.Context) {
	store := e.config.Store()
	if text, err := os.ReadFile(store.StateDir + "/db/schema"); err == nil {
		version := strings.TrimSpace(string(text))
		if version != schema {
			e.find(Finding{
				ID: "schema", Severity: Unknown,
				What:        fmt.Sprintf("Nix's database has schema %s; this program was made for %s", version, schema),
				Consequence: "whether closures are read right is not known",
				Advice:      "see whether there is a later nix-closure",
			})
			return
		}
		e.fact("database", "schema "+version)
	}
	snapshot, err := nixdb.Open(ctx, store)
	if err == nil {
		err = snapshot.Close()
	}
	if err != nil {
		e.find(Finding{
			ID: "database", Severity: Warning, What: "Nix's database cannot be read: " + oneLine(err),
			Consequence: "nix-store is asked for closures instead, if it can read them, which takes longer",
			Advice: "run as the user who runs the hook, mostly root; " +
				"`nix-store --verify` says whether it is damaged",
		})
	}
}
