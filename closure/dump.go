// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// maxDump bounds a `registration` file, in bytes. It is enough for fifty thousand paths of
// common length with twenty-five references each.
const maxDump = 96 << 20

// ReadDump reads the `registration` file of a closure-info, as carefully as ReadInfo, with
// ParseDump. What the file says is only a claim of its author: see RegistrationName.
func ReadDump(store Store, c Closure, info BaseName) ([]PathInfo, error) {
	return readInfo(store, info, "registration", maxDump, func(text io.Reader) ([]PathInfo, error) {
		return ParseDump(store, c, text)
	})
}

// ParseDump parses the registration of a closure, in the format that `nix-store --dump-db`
// writes and `nix-store --load-db` reads. Each store path has these lines: the path, the
// SHA-256 of its NAR, the size of the NAR in bytes, the deriver or an empty line, the
// number of references, the references.
//
// The result is as of Restrict: in the order of the closure, with sorted references, and
// without any name from outside the closure.
//
// The text is hostile. ParseDump guarantees, against its author, that the text registers
// every path of the closure exactly once, that each reference is in the closure, and that
// nothing is cut off or left over. An error about a line has its number. ParseDump reads
// line by line. Its memory grows with the closure and its references, not with the length
// of the text.
func ParseDump(store Store, c Closure, text io.Reader) ([]PathInfo, error) {
	r := newDumpReader(store, c)
	if err := r.read(text); err != nil {
		return nil, err
	}
	return r.registration()
}

// dumpReader reads the registration of a closure from one or more texts.
type dumpReader struct {
	store   Store
	closure Closure
	index   map[BaseName]int // into closure.Names
	infos   []PathInfo       // in the order of closure.Names; Name is empty before its lines are read
	lines   lineReader
	found   []int // the references of one path, as indexes into closure.Names
}

func newDumpReader(store Store, c Closure) *dumpReader {
	r := &dumpReader{
		store:   store,
		closure: c,
		index:   make(map[BaseName]int, len(c.Names)),
		infos:   make([]PathInfo, len(c.Names)),
	}
	for i, name := range c.Names {
		r.index[name] = i
	}
	return r
}

// read reads one whole text.
func (r *dumpReader) read(text io.Reader) error {
	r.lines = newLineReader(text)
	for {
		line, err := r.lines.next()
		if errors.Is(err, io.EOF) && len(line) == 0 && r.lines.number > 0 {
			return nil
		}
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return errors.New("registers no store path")
		}
		if err = cutOff(line, err); err == nil {
			err = r.pathInfo(line)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", r.lines.number, err)
		}
	}
}

// registration returns what was read. It fails if a path of the closure is missing.
func (r *dumpReader) registration() ([]PathInfo, error) {
	for i, name := range r.closure.Names {
		if r.infos[i].Name == "" {
			return nil, notRegistered(r.store, name)
		}
	}
	return r.infos, nil
}

// pathInfo reads the lines of one path. The first line was read by the caller.
func (r *dumpReader) pathInfo(line []byte) error {
	i, err := r.path(line)
	if err != nil {
		return err
	}
	if i < 0 {
		return fmt.Errorf("%s is registered, but not in the closure", line)
	}
	info := PathInfo{Name: r.closure.Names[i]}
	if r.infos[i].Name != "" {
		return registeredTwice(r.store, info.Name)
	}
	if line, err = r.line(); err != nil {
		return err
	}
	if info.NarHash, err = ParseNarHash(string(line)); err != nil {
		return err
	}
	if info.NarSize, err = r.count(); err != nil {
		return err
	}
	if line, err = r.line(); err != nil {
		return err
	}
	if len(line) > 0 {
		deriver, err := r.path(line)
		if err != nil {
			return err
		}
		if deriver >= 0 {
			info.Deriver = r.closure.Names[deriver]
		}
	}
	if info.References, err = r.references(info.Name); err != nil {
		return err
	}
	r.infos[i] = info
	return nil
}

// references reads the number of references and the references, and sorts the latter.
func (r *dumpReader) references(of BaseName) ([]BaseName, error) {
	count, err := r.count()
	if err != nil {
		return nil, err
	}
	if count > int64(len(r.closure.Names)) {
		return nil, fmt.Errorf("%d references, but the closure has %d paths", count, len(r.closure.Names))
	}
	r.found = r.found[:0]
	for range count {
		line, err := r.line()
		if err != nil {
			return nil, err
		}
		i, err := r.path(line)
		if err != nil {
			return nil, err
		}
		if i < 0 {
			return nil, fmt.Errorf("%s references %s, which is not in the closure", r.store.Path(of), line)
		}
		r.found = append(r.found, i)
	}
	if count == 0 {
		return nil, nil
	}
	slices.Sort(r.found) // as indexes, because the names are sorted
	references := make([]BaseName, len(r.found))
	for at, i := range r.found {
		references[at] = r.closure.Names[i]
		if at > 0 && i == r.found[at-1] {
			return nil, fmt.Errorf("%s references %s twice", r.store.Path(of), r.store.Path(references[at]))
		}
	}
	return references, nil
}

// line returns the next line of a path, except the first.
func (r *dumpReader) line() ([]byte, error) {
	line, err := r.lines.next()
	if errors.Is(err, io.EOF) && len(line) == 0 {
		r.lines.number++
		return nil, errors.New("missing: the text ends in the middle of a store path's lines")
	}
	return line, cutOff(line, err)
}

// cutOff returns the error for a line without a line break.
func cutOff(line []byte, err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%q: without a line break at its end, so it may be cut off", line)
	}
	return err
}

// path returns the index of a store path in the closure; -1: the closure does not have it.
func (r *dumpReader) path(line []byte) (int, error) {
	if dir := len(r.store.Dir); len(line) > dir && string(line[:dir]) == r.store.Dir && line[dir] == '/' {
		if i, ok := r.index[BaseName(line[dir+1:])]; ok {
			return i, nil
		}
	}
	_, err := r.store.ParseExact(string(line))
	return -1, err
}

func (r *dumpReader) count() (int64, error) {
	line, err := r.line()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(line), 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != string(line) {
		return 0, fmt.Errorf("%q: not a number", line)
	}
	return n, nil
}
