// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"time"
)

// verifyRuns are of one container each.
const verifyRuns = 50

// verified is how long `nix-closure verify` takes for one container, from the program's
// start to its end, without contents.
type verified struct {
	mode    string
	samples []time.Duration
}

// measureVerify verifies a container of each mode that a runtime has made.
func (h *host) measureVerify(r *containerRuntime, paths int, p *progress) (all []verified, _ error) {
	for _, mode := range []string{"overlay", "bind"} {
		p.show("verify, %s", mode)
		dir := filepath.Join(h.dir, "bundles", "verify", mode)
		b := bundle{root: h.image, hooks: bothStages(h.hook, h.warm.args()...), annotations: h.annotations(paths, mode)}
		if err := b.write(dir, "/bin/true"); err != nil {
			return nil, err
		}
		id := "verify-" + mode
		// What is made and not started has all of its mounts.
		create := exec.Command(r.path, "--root", r.root, "create", "--bundle", dir, id)
		create.Stderr = r.stderr
		if err := create.Run(); err != nil {
			return nil, fmt.Errorf("%s create: %w: %s", r.name, err, r.complaint())
		}
		v, err := h.verify(mode, id)
		if removed := exec.Command(r.path, "--root", r.root, "delete", "--force", id).Run(); err == nil {
			err = removed
		}
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func (h *host) verify(mode, id string) (verified, error) {
	v := verified{mode: mode}
	program := filepath.Join(filepath.Dir(h.hook), "nix-closure")
	for i := range warmUps + verifyRuns {
		cmd := exec.Command(program, append(h.warm.args(), "verify", id)...)
		begin := time.Now()
		said, err := cmd.CombinedOutput()
		if took := time.Since(begin); i >= warmUps {
			v.samples = append(v.samples, took)
		}
		if err != nil {
			return v, fmt.Errorf("%s: %w: %s", cmd, err, said)
		}
	}
	return v, nil
}
