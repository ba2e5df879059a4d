// SPDX-License-Identifier: Apache-2.0

package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure/view"
	"github.com/nix-closure/nix-closure/internal/owndir"
)

// share is the default limit of the runtime directory: one part in share of its file
// system. /run belongs to the whole host.
const share = 4

// kept is an entry of the runtime directory that makes later starts faster.
type kept struct {
	dir  *owndir.Dir // nil: the cache
	name string
	cost view.Cost
	last time.Time // last use
}

// MakeRoom makes room for a new entry of the runtime directory. It removes unused
// entries, the longest unused first, until the rest and need are within the limits of the
// configuration. If even that is not enough, it fails.
//
// Only a process that makes an entry calls it: a start that uses existing entries costs
// nothing more.
func (d *Dir) MakeRoom(ctx context.Context, need view.Cost) (Swept, error) {
	limit, err := d.limit()
	if err != nil {
		return Swept{}, err
	}
	s := &sweeper{dir: d}
	total, unused, err := s.inventory()
	if err != nil {
		return Swept{}, err
	}
	total = total.Add(need)
	fits := func() bool { return total.Inodes <= limit.Inodes && total.Bytes <= limit.Bytes }
	slices.SortFunc(unused, func(a, b kept) int {
		return cmp.Or(a.last.Compare(b.last), cmp.Compare(a.name, b.name))
	})
	var errs []error
	for _, k := range unused {
		if fits() || ctx.Err() != nil {
			break
		}
		removed, err := s.makeRoom(k)
		if errs = append(errs, err); removed {
			total = total.Sub(k.cost)
		}
	}
	if fits() {
		return s.swept, nil
	}
	used := total.Sub(need)
	err = fmt.Errorf("no room in %s: entries in use take %d inodes and %d bytes, "+
		"this needs %d and %d more, and the limits are %s and %s; "+
		"raise runtime-inodes or runtime-size in the configuration, or end containers",
		d.path, used.Inodes, used.Bytes, need.Inodes, need.Bytes, limited(limit.Inodes), limited(limit.Bytes))
	return s.swept, errors.Join(append([]error{err}, errs...)...)
}

func limited(n int64) string {
	if n == math.MaxInt64 {
		return "none"
	}
	return fmt.Sprint(n)
}

// limit returns how much the runtime directory may take of its file system.
func (d *Dir) limit() (view.Cost, error) {
	limit := view.Cost{Inodes: d.config.RuntimeInodes, Bytes: int64(d.config.RuntimeSize)}
	if limit.Inodes > 0 && limit.Bytes > 0 {
		return limit, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.path, &st); err != nil {
		return limit, &os.PathError{Op: "statfs", Path: d.path, Err: err}
	}
	// Some file systems do not count inodes (btrfs), and a tmpfs may have no size.
	if limit.Inodes == 0 {
		limit.Inodes = part(st.Files)
	}
	if limit.Bytes == 0 {
		limit.Bytes = math.MaxInt64
		if size := part(st.Blocks); size < math.MaxInt64/st.Bsize {
			limit.Bytes = size * st.Bsize
		}
	}
	return limit, nil
}

func part(whole uint64) int64 {
	if whole == 0 || whole > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(whole / share)
}

// inventory sums up the cost of views, registrations and closures, and returns the
// entries that no container uses.
func (s *sweeper) inventory() (total view.Cost, unused []kept, _ error) {
	for _, dir := range []*owndir.Dir{s.dir.Views, s.dir.Registrations, s.dir.Closures} {
		all, err := dir.Names()
		if err != nil {
			return total, nil, err
		}
		used, _, err := s.users(dir)
		if used == nil {
			return total, nil, err
		}
		for _, name := range all {
			cost, err := s.cost(dir, name)
			if errors.Is(err, os.ErrNotExist) {
				continue // gone since
			}
			if err != nil {
				return total, nil, err
			}
			total = total.Add(cost)
			_, _, ref := parseRef(name)
			if ref || !view.IsHalf(name) && used[layerOf(name)] || strings.HasPrefix(name, ".") {
				continue
			}
			if last, err := lastUse(dir, name); err == nil {
				unused = append(unused, kept{dir: dir, name: name, cost: cost, last: last})
			}
		}
	}
	cache, err := s.dir.cacheUse()
	if err == nil {
		total, unused = total.Add(cache.cost), append(unused, kept{cost: cache.cost, last: cache.last})
	}
	return total, unused, ignoreMissing(err)
}

// cost returns what an entry of the runtime directory takes of its file system.
func (s *sweeper) cost(dir *owndir.Dir, name string) (view.Cost, error) {
	st, err := dir.Lstat(name)
	if err != nil {
		return view.Cost{}, err
	}
	if st.IsDir() {
		return view.CostOf(dir, name), nil
	}
	return view.Cost{Inodes: 1, Bytes: view.InodeBytes + st.Size()}, nil
}

// makeRoom removes an entry that was found unused, if it still is unused.
func (s *sweeper) makeRoom(k kept) (removed bool, err error) {
	switch k.dir {
	case nil:
		return s.removeCache()
	case s.dir.Views:
		if removed, err = s.view(k.name); removed {
			s.swept.Views = append(s.swept.Views, k.name)
		}
		return removed, err
	case s.dir.Registrations:
		return s.registration(k.name)
	}
	return s.closure(k.name)
}
