// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/cdi"
	"github.com/nix-closure/nix-closure/internal/engineconfig"
)

// devices looks at the file of CDI devices. Without one, no engine knows a device, and
// starts no container that asks for one.
func (e *exam) devices(ctx context.Context) {
	devices, err := cdi.List(cdi.Path, e.config.Store())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	const none = "containers with this device do not start"
	if err != nil {
		e.find(Finding{
			ID: "cdi", Severity: Closed, What: oneLine(err),
			Consequence: "containers with a CDI device of it do not start",
			Advice:      "mend the file, or remove it and call `nix-closure cdi generate`",
		})
		return
	}
	e.trusted("", cdi.Path)
	refresh := []string{quote(e.self) + " cdi generate --refresh"}
	if info, err := os.Lstat(cdi.Path); err != nil || !info.Mode().IsRegular() {
		refresh = nil // another program made the link, and is to make it anew
	}
	store := e.config.Store()
	nix := closure.NixStore{Program: e.config.NixStore, Store: store}
	editor := cdi.Editor{
		Path: cdi.Path, Nix: nix, Roots: cdi.RootsDir(store),
		Valid: func(ctx context.Context, d cdi.Device) error {
			_, err := nix.Versions(ctx, d.Request.Asked())
			return err
		},
	}
	for _, d := range devices {
		if d.Trouble != nil {
			e.find(Finding{
				ID: "cdi-other", Severity: Warning, What: fmt.Sprintf("%s: device %s: %v", cdi.Path, d.Name, d.Trouble),
				Consequence: "what a container with this device gets is not known here",
				Advice:      "remove the device, or give it another kind",
			})
			continue
		}
		e.program("", d.Hook, engineconfig.HookProgram, whereMissing{
			severity: Closed, consequence: none, fix: refresh, advice: "have what wrote " + cdi.Path + " write it anew",
		})
		err := editor.CheckClosure(ctx, d)
		switch what := fmt.Sprintf("%s: device %s: ", cdi.Path, d.Name); {
		case err == nil:
			e.fact("device", d.FullName())
		case errors.Is(err, cdi.ErrUnpinned):
			e.find(Finding{
				ID: "cdi-unpinned", Severity: Warning, What: what + oneLine(err),
				Consequence: "once it is taken, " + none, Fix: refresh,
			})
		case errors.Is(err, closure.ErrNotValid):
			e.find(Finding{
				ID: "cdi-not-valid", Severity: Closed, What: what + oneLine(err), Consequence: none,
				Advice: "or remove the device: `nix-closure cdi remove " + d.Name + "`",
			})
		default:
			e.unknown("", what+"asking Nix", err)
		}
	}
}
