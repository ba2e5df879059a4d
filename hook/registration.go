// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"fmt"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
)

// registration makes a state directory with a copy of the closure's database. The
// database is made once, by the program that reads the host's.
func registration(ctx context.Context, dir *RuntimeDir, p pinner, res closure.Resolution, o view.Options, size int64, owner view.Owner) (view.View, error) {
	name := closure.RegistrationName(res.Digest, p.query.Info)
	db, err := dir.Registration(name, res.Since)
	if err != nil {
		program, err := p.resolver()
		if err != nil {
			return nil, err
		}
		program.Args = append(program.Args, "--registration")
		made, err := program.Resolve(ctx, p.config.Store(), p.query)
		if err != nil {
			return nil, err
		}
		if made.Digest != res.Digest {
			return nil, fmt.Errorf("the closure is not what the memo said; start the container again")
		}
		if db, err = dir.Registration(name, made.Since); err != nil {
			return nil, err
		}
	}
	defer db.Close()
	return view.NewRegistration(p.config.Store(), db, o, size, owner)
}
