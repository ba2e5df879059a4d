// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/hook/state"
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/spec"
)

// descriptors returns how many files this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

// A long-lived process, such as the NRI plugin, keeps no file open after a check.
func TestNothingStaysOpen(t *testing.T) {
	h := newHost(t)
	runtime.GC() // closes what an earlier test left
	annotations := map[string]string{"nix-closure/roots": h.store.Path(named("hello"))}
	began, err := proc.StartTime(os.Getpid())
	must(t, err)
	h.record(t, state.Record{ID: "other", Bundle: h.dir, Pid: os.Getpid(), PidStart: began})
	for _, c := range []struct {
		name string
		call func() error
	}{
		{"MissingView", func() error {
			missing, err := MissingView(h.config, spec.Containerd, "web", annotations)
			if err == nil && !missing {
				err = errors.New("it is said to have a view")
			}
			return err
		}},
		{"CheckContainer", func() error {
			_, _, err := CheckContainer(h.config,
				Container{ID: "web", Engine: spec.Containerd, Bundle: "/", Annotations: annotations})
			return err
		}},
		{"claim, refused", func() error {
			c, err := config.Read(h.config)
			must(t, err)
			s := &start{
				progress: &progress{}, config: c, state: spec.State{ID: "other", Pid: os.Getppid()},
				log: logTo(io.Discard, "createRuntime", "x"), began: time.Now(),
			}
			request := &spec.Request{Roots: []closure.BaseName{named("hello")}}
			claimed, err := claim(t.Context(),
				&checked{start: s, inspected: &inspected{request: request}, store: h.store})
			if claimed != nil || err == nil || !strings.Contains(err.Error(), "another container with this ID") {
				t.Errorf("claimed: %v", err)
			}
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			must(t, c.call()) // files that are opened only once may stay open
			before := descriptors(t)
			for range 50 {
				must(t, c.call())
			}
			if after := descriptors(t); after > before {
				t.Errorf("%d files are open, and before 50 calls %d", after, before)
			}
		})
	}
}
