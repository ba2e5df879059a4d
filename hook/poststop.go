// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"github.com/nix-closure/nix-closure/internal/config"
	"github.com/nix-closure/nix-closure/spec"
)

// poststop forgets a container that is gone. It can be called any number of
// times. It never fails, so that it never keeps a container from being removed:
// what it could not do is in the log.
func poststop(configPath string, state spec.State) {
	if !spec.Annotated(state.Annotations) {
		return
	}
	c, err := config.Read(configPath)
	if err != nil {
		newLog(config.Default().LogFile, "poststop", state.ID).Error((&failure{state.ID, "reading the configuration", err}).Error())
		return
	}
	log := newLog(c.LogFile, "poststop", state.ID)
	dir, err := openRuntimeDir(c.RuntimeDir)
	if err != nil {
		log.Error((&failure{state.ID, "opening the runtime directory", err}).Error())
		return
	}
	r, ok, err := dir.readRecord(state.ID)
	if err != nil {
		log.Error((&failure{state.ID, "reading the record", err}).Error())
		return
	}
	// A container with the same id, of another engine or namespace, keeps what
	// it has.
	if ok && r.Bundle != "" && r.Bundle != state.Bundle {
		return
	}
	if err := dir.forget(c.Store(), state.ID); err != nil {
		log.Error((&failure{state.ID, "cleaning up", err}).Error())
		return
	}
	if ok {
		log.Info("forgotten")
	}
}
