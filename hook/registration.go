// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/closure/view"
)

// registration makes a state directory with a copy of the closure's database. The
// database is made once, by the program that reads the host's.
func registration(ctx context.Context, p *pinned, size int64, owner view.Owner) (view.View, error) {
	db, err := openRegistration(ctx, p)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	return view.NewRegistration(p.store, db, p.options, size, owner)
}

// openRegistration opens the database, and has it made if there is none. An open
// file outlives a sweep; one that a sweep takes before it is opened is made again.
func openRegistration(ctx context.Context, p *pinned) (*os.File, error) {
	name := closure.RegistrationName(p.resolution.Digest, p.query().Info)
	db, err := p.dir.OpenRegistration(name, p.resolution.Since)
	for attempt := 0; err != nil && attempt < layerAttempts; attempt++ {
		program, err2 := p.pinner.resolver()
		if err2 != nil {
			return nil, err2
		}
		program.Args = append(program.Args, "--registration")
		made, err2 := program.Resolve(ctx, p.store, p.query())
		if err2 != nil {
			return nil, err2
		}
		if made.Digest != p.resolution.Digest {
			return nil, fmt.Errorf("the closure is not what the memo said; start the container again")
		}
		if db, err = p.dir.OpenRegistration(name, made.Since); !errors.Is(err, fs.ErrNotExist) {
			return db, err
		}
	}
	return db, err
}

func (p *pinned) query() closure.Query { return p.pinner.query }
