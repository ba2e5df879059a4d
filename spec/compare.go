// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/rootfs"
)

// comparer compares what shows with guarded directories.
type comparer struct {
	// lax: the file system says what it likes of a file's times and links, as FUSE
	// and servers do. Then names decide, and sizes.
	lax bool
	// layered: a guarded directory may itself be merged, and what shows be a layer.
	layered bool
	left    int // how many names may still be looked at
	root    int // what is looked into
	// rootNames are the names in it, once they were read.
	rootNames []string
}

// mostCompared bounds the names that are looked at in one file system. An image with a
// store of its own has some thousand.
const mostCompared = 200_000

var errTooMany = errors.New("it has too many names to tell whether the host's store shows there")

// mostOfHost bounds the names of a directory of the host's own, such as the store.
const mostOfHost = 10_000_000

func tooMany(err error) error {
	if errors.Is(err, rootfs.ErrTooMany) {
		return errTooMany
	}
	return err
}

// shows tells whether a guarded directory, or a part of it, shows at a position.
func (c *comparer) shows(position string, t *tree) (bool, error) {
	fd := c.root
	if position != "" {
		var err error
		if fd, err = c.open(c.root, position); err != nil {
			return false, ignore(err, errNotThere)
		}
		defer unix.Close(fd)
	}
	like, err := c.compare(fd, "", t.fd, "")
	if err != nil || like.same {
		return like.same, err
	}
	if like.kind != unix.S_IFDIR || !c.maybeMerged(fd, like) {
		return false, nil
	}
	names, err := c.names(fd)
	if err != nil {
		return false, err
	}
	if names, err = t.common(names); err != nil {
		return false, err
	}
	return c.contains(fd, t.fd, names, t.store)
}

// showsFile tells whether a guarded file shows at a position.
func (c *comparer) showsFile(position string, f guardedFile) (bool, error) {
	dir, name := c.root, position
	if above, base := path.Split(position); above != "" {
		var err error
		if dir, err = c.open(c.root, strings.TrimSuffix(above, "/")); err != nil {
			return false, ignore(err, errNotThere)
		}
		defer unix.Close(dir)
		name = base
	}
	like, err := c.compare(dir, name, f.dir, f.base)
	return like.same, err
}

// maybeMerged tells whether a directory needs to be looked into: it is merged, or may
// lie, or has the guarded one's attributes and another inode number, which overlay makes
// up for a directory of another file system. Any other is the guarded directory itself,
// or is not.
func (c *comparer) maybeMerged(dir int, like likeness) bool {
	if like.attributes || c.lax || c.layered {
		return true
	}
	var st unix.Stat_t
	return unix.Fstat(dir, &st) != nil || st.Nlink == 1
}

// contains tells whether a directory has something of a guarded one in it: one of names,
// or what is below.
func (c *comparer) contains(dir, guarded int, names []string, store bool) (bool, error) {
	for _, name := range names {
		if c.left--; c.left < 0 {
			return false, errTooMany
		}
		like, err := c.compare(dir, name, guarded, name)
		// The same name and the same times are no accident.
		if err != nil || like.same || like.attributes {
			return like.same || like.attributes, err
		}
		if like.kind == 0 {
			continue
		}
		if _, err := closure.ParseBaseName(name); err == nil && store && c.lax {
			return true, nil // nor is the same hash
		}
		if like.kind != unix.S_IFDIR {
			continue
		}
		if found, err := c.containsBelow(dir, guarded, name, like); err != nil || found {
			return found, err
		}
	}
	return false, nil
}

func (c *comparer) containsBelow(dir, guarded int, name string, like likeness) (bool, error) {
	a, err := c.open(dir, name)
	if err != nil {
		return false, ignore(err, errNotThere)
	}
	defer unix.Close(a)
	if !c.maybeMerged(a, like) {
		return false, nil
	}
	b, err := openBelow(guarded, name)
	if err != nil {
		return false, ignore(err, errNotThere)
	}
	defer unix.Close(b)
	names, err := c.names(a)
	if err != nil {
		return false, err
	}
	return c.contains(a, b, names, false)
}

// open is openBelow in what is looked into. What this process may not enter, a FUSE
// file system may let another user enter.
func (c *comparer) open(dir int, name string) (int, error) {
	fd, err := openBelow(dir, name)
	if errors.Is(err, unix.EACCES) && !c.lax {
		err = errNotThere
	}
	return fd, err
}

// names returns the names in a directory, those in the root from the first reading.
func (c *comparer) names(dir int) ([]string, error) {
	if dir != c.root {
		names, err := rootfs.Names(dir, mostCompared)
		return names, tooMany(err)
	}
	if c.rootNames == nil {
		names, err := rootfs.Names(dir, mostCompared)
		if err != nil {
			return nil, tooMany(err)
		}
		c.rootNames = names
	}
	return c.rootNames, nil
}

// ignore returns nil for an error that is target.
func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}

// likeness is how like a guarded file another is.
type likeness struct {
	kind       uint32 // the type of both; 0: they have different ones, or one is not there
	same       bool   // it is the same file
	attributes bool   // it has the guarded file's attributes
}

// compare compares a file with a guarded one. That is looked at twice, because it may
// change meanwhile.
func (c *comparer) compare(dir int, name string, guarded int, guardedName string) (likeness, error) {
	var like likeness
	own, there, err := c.stat(guarded, guardedName, false)
	if err != nil || !there {
		return like, err
	}
	shown, there, err := c.stat(dir, name, c.lax)
	if err != nil || !there || shown.Mode&unix.S_IFMT != own.Mode&unix.S_IFMT {
		return like, err
	}
	like.kind = shown.Mode & unix.S_IFMT
	if c.match(&like, shown, own); like.same {
		return like, nil
	}
	own, there, err = c.stat(guarded, guardedName, false)
	if err == nil && there {
		c.match(&like, shown, own)
	}
	return like, err
}

// stat returns the attributes of a file. Where this user may not look, no container of
// this user's may, and the file counts as not there, unless others may look all the same.
func (c *comparer) stat(dir int, name string, othersMay bool) (st unix.Stat_t, there bool, _ error) {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err := unix.Fstatat(dir, name, &st, flags)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EACCES) && !othersMay {
		return st, false, nil
	}
	if err != nil {
		return st, false, &os.PathError{Op: "fstatat", Path: name, Err: err}
	}
	return st, true, nil
}

// match compares attributes.
func (c *comparer) match(like *likeness, shown, own unix.Stat_t) {
	if c.lax {
		// Directories have nothing that could be relied on.
		equal := own.Size > 0 && shown.Size == own.Size && shown.Mtim.Sec == own.Mtim.Sec
		like.same = like.same || like.kind == unix.S_IFREG && equal
		return
	}
	equal := shown.Size == own.Size && shown.Mtim == own.Mtim && shown.Ctim == own.Ctim
	like.attributes = like.attributes || equal
	like.same = like.same || equal && uint32(shown.Ino) == uint32(own.Ino)
}
