// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// flip mounts an overlay of a store path by a link that leads elsewhere afterwards, so that
// its options tell nothing. In its upper directory are more files than are looked at where
// a name can be believed.
func flip(t *testing.T, path string, merged bool) string {
	t.Helper()
	dir := t.TempDir()
	// Whoever owns the link can change it.
	made := []error{os.Chmod(dir, 0o777), os.Symlink(path, dir+"/link")}
	for _, d := range []string{"/empty", "/upper/bin", "/work", "/at"} {
		made = append(made, os.MkdirAll(dir+d, 0o755))
	}
	for i := range 20 {
		made = append(made, os.WriteFile(fmt.Sprintf("%s/upper/bin/!%02d", dir, i), nil, 0o644))
	}
	if !merged {
		made = append(made, os.RemoveAll(dir+"/upper/bin"))
	}
	options := "lowerdir=" + dir + "/link:" + dir + "/empty,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
	made = append(made, syscall.Mount("overlay", dir+"/at", "overlay", 0, options),
		os.Remove(dir+"/link"), os.Symlink(dir+"/empty", dir+"/link"))
	if err := errors.Join(made...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir+"/at", syscall.MNT_DETACH) })
	return dir + "/at"
}

// An overlay whose options name what is elsewhere now is known by the handles of its files,
// or refused.
func TestFlippedLayers(t *testing.T) {
	writeConfig(t, "[[allow]]\nroots = [\""+store["env"]+"\"]\n")
	for i, c := range []struct {
		name, path string
		merged     bool
		around     func(t *testing.T) // the layout of the host
		reason     string
	}{
		{name: "plain", path: store["foreign"], reason: store["foreign"]},
		{name: "merged", path: store["foreign"], merged: true, reason: store["foreign"]},
		{name: "profiles", path: "/nix/var/nix/profiles", reason: "of the host, and with it more than the closure"},
		{name: "the store bound on itself", path: store["foreign"],
			around: func(t *testing.T) { bindMount(t, "/nix", "/nix") },
			reason: store["foreign"]},
		{name: "nothing of the store", path: "/usr/share/doc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.around != nil {
				c.around(t)
			}
			at := flip(t, c.path, c.merged)
			run := container{runtime: runtimes[i%len(runtimes)], root: "env", flags: []string{"-v", at + ":/x"}}
			if c.reason == "" {
				run.mustRun(t, store["env"]+"/bin/true")
				return
			}
			stdout, _, err := run.run(store["env"]+"/bin/echo", "it runs")
			if said := lastError(t); err == nil || stdout != "" || !strings.Contains(said, c.reason) {
				t.Errorf("%v %q; the log says %q", err, stdout, said)
			}
		})
	}
}
