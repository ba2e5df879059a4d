// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/idmap"
)

// maxLinks is how many links are followed from one match of a glob: as many as the kernel
// follows in one path.
const maxLinks = 40

// walk searches for links to store paths.
//
// It trusts only what root alone can change. First it looks at the owner and mode of `/`.
// If a directory is trusted, nobody else can replace anything in it. So the owner and mode
// of a directory in it will stay those of the directory with that name, and the target of a
// link in it is the one that root gave it. (The owner of a link does not matter. To change
// its target, a user has to replace the link, which needs write access to the directory.)
// By induction, this holds for every directory that was entered, by whatever name or link.
// So paths can be strings: between two system calls, only root could have changed their
// meaning.
//
// The file system says who may write. The group's bits are the upper bound of an access
// control list. But a network file system, or a FUSE one that is mounted with allow_other,
// can say anything.
type walk struct {
	store closure.Store
	left  []closure.BaseName // asked for and not allowed yet
	// roots are the user IDs that root may have; nil: not looked up yet.
	roots []uint32
	// others are directories that belong to root, but whose links do not.
	others []foreign
	// ignored is the directory that is not trusted, and why; of several, the first.
	ignored *Ignored
}

// Ignored is a directory whose links allow nothing.
type Ignored struct {
	Dir, Why string
	Writable bool // by others than root, and for no other reason
}

// String is for the end of a message.
func (i *Ignored) String() string {
	if i == nil {
		return ""
	}
	return fmt.Sprintf("; links in %q are ignored: %s", i.Dir, i.Why)
}

type foreign struct {
	dir fs.FileInfo
	why string
}

// allow removes paths from those that are left.
func (w *walk) allow(named func(b closure.BaseName) bool) {
	w.left = slices.DeleteFunc(w.left, named)
}

const (
	anybodyBuilds = "whoever may build can add to it"
	askedFor      = "what containers ask for is linked there"
)

// find allows what the globs lead to, until no path is left.
func (w *walk) find(runtimeDir string, globs []string) {
	for _, f := range []struct{ dir, why string }{
		{w.store.Dir, anybodyBuilds},
		{w.store.GCRoots().Dir, askedFor},
		{runtimeDir, askedFor}, // it has an ordinary user's GC roots
		// The daemon makes a link to every path that a user names (AddIndirectRoot).
		{w.store.StateDir + "/gcroots/auto", "every user of the Nix daemon can have links made there"},
		{"/proc", "processes decide what its links say"},
	} {
		if info, err := os.Stat(f.dir); err == nil {
			w.others = append(w.others, foreign{info, f.why})
		}
	}
	if !w.trusted("/") {
		return
	}
	for _, glob := range globs {
		w.expand("/", glob[1:])
	}
}

// expand allows the store paths that are the targets of links that a glob finds. dir is a
// trusted directory, and glob is relative to it.
func (w *walk) expand(dir, glob string) {
	component, rest, more := strings.Cut(glob, "/")
	for _, name := range w.names(dir, component) {
		if len(w.left) == 0 {
			return
		}
		end, inStore := w.follow(dir, name)
		switch {
		case end == "":
		case more && inStore:
			w.ignore(w.store.Dir, anybodyBuilds)
		case more:
			if w.trusted(end) {
				w.expand(end, rest)
			}
		case inStore:
			// Something below a store path is not that store path: root named only that
			// part.
			if base, err := w.store.ParseExact(end); err == nil {
				w.allow(func(b closure.BaseName) bool { return b == base })
			}
		}
	}
}

// names returns the names in a directory that match one component of a glob.
func (w *walk) names(dir, component string) []string {
	if !strings.ContainsAny(component, `*?[\`) {
		return []string{component}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		w.unreadable(dir, err)
		return nil
	}
	var names []string
	for _, e := range entries {
		if matches(component, e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names
}

// follow follows a path, link by link. dir is a trusted directory without a link in its
// name, and rest is relative to it. follow returns where the path leads, without a link in
// its name, and does not enter that if it is a directory. If a link's target lies in the
// store, follow returns that target at once. It returns "" if the path leads nowhere, in a
// circle, or through a directory that is not trusted.
func (w *walk) follow(dir, rest string) (end string, inStore bool) {
	for links := 0; rest != ""; {
		// After its `..` are resolved, a relative target has this text too.
		if text := join(dir, rest); links > 0 && strings.HasPrefix(text, w.store.Dir+"/") {
			return text, true
		}
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		rest = strings.TrimLeft(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			dir = path.Dir(dir)
			continue
		}
		here := join(dir, name)
		target, err := os.Readlink(here)
		switch {
		case err == nil:
			if links++; links > maxLinks {
				return "", false
			}
			if path.IsAbs(target) {
				dir, target = "/", strings.TrimLeft(target, "/")
			}
			if rest != "" {
				target += "/" + rest
			}
			rest = target
		case errors.Is(err, fs.ErrNotExist):
			return "", false
		case !errors.Is(err, syscall.EINVAL): // EINVAL: it is no link
			w.unreadable(dir, err)
			return "", false
		case rest == "":
			return here, false
		case !w.trusted(here):
			return "", false
		default:
			dir = here
		}
	}
	return dir, false
}

// join appends a path to a directory, and does not clean it.
func join(dir, rest string) string {
	return strings.TrimSuffix(dir, "/") + "/" + rest
}

// trusted reports whether only root can make, replace or remove a link in a directory, or
// have one made. The directories above must be trusted already.
func (w *walk) trusted(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	mode := st.Mode & 0o7777
	switch {
	case !w.isRoot(st.Uid):
		return w.ignoreWritable(dir, fmt.Sprintf("user %d can write there (mode %04o)", st.Uid, mode))
	// Also with the sticky bit: it keeps others from replacing links, but not from making
	// new ones.
	case mode&0o002 != 0:
		return w.ignoreWritable(dir, fmt.Sprintf("everybody can write there (owner %d, mode %04o)", st.Uid, mode))
	case mode&0o020 != 0:
		return w.ignoreWritable(dir,
			fmt.Sprintf("group %d can write there (owner %d, mode %04o)", st.Gid, st.Uid, mode))
	}
	for _, f := range w.others {
		if os.SameFile(info, f.dir) {
			return w.ignore(dir, f.why)
		}
	}
	return true
}

// ignore notes why the links in a directory allow nothing.
func (w *walk) ignore(dir, why string) bool {
	if w.ignored == nil {
		w.ignored = &Ignored{Dir: dir, Why: why}
	}
	return false
}

func (w *walk) ignoreWritable(dir, why string) bool {
	if w.ignored == nil {
		w.ignored = &Ignored{Dir: dir, Why: why, Writable: true}
	}
	return false
}

// unreadable is ignore after a failed system call, whose error may have any character in a
// name.
func (w *walk) unreadable(dir string, err error) {
	w.ignore(dir, fmt.Sprintf("they cannot be read: %v", errors.Unwrap(err)))
}

func (w *walk) isRoot(uid uint32) bool {
	if uid == 0 {
		return true
	}
	if w.roots == nil {
		w.roots = idmap.RootIDs()
	}
	return slices.Contains(w.roots, uid)
}
