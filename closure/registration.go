// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// PathInfo is what Nix's database says of one valid store path.
type PathInfo struct {
	Name       BaseName
	NarHash    string // as ParseNarHash returns it
	NarSize    int64  // 0: unknown
	Registered int64  // seconds since 1970; 0: unknown
	Deriver    BaseName
	Ultimate   bool   // built here, not copied from elsewhere
	Signatures string // separated by spaces
	CA         string // empty: not content-addressed
	References []BaseName
	Outputs    []Output
}

// Output is what a derivation that is a valid store path makes.
type Output struct {
	Name string // `out`
	Path BaseName
}

// RegistrationSchema is the version of Nix's schema, of Nix 2.0 and later, that a
// registration has. The file `schema` beside the database says it.
const RegistrationSchema = "10"

// maxRegistrationFile bounds a `registration` file, in bytes: fifty thousand
// paths with twenty-five references each, of common length.
const maxRegistrationFile = 96 << 20

// ReadRegistration reads the `registration` of a closure-info, with the care that
// ReadInfo takes: see ParseRegistration. What the file says is a claim of whoever
// made the closure-info, see RegistrationName.
func ReadRegistration(store Store, c Closure, info BaseName) ([]PathInfo, error) {
	return readInfo(store, info, "registration", maxRegistrationFile, func(text io.Reader) ([]PathInfo, error) {
		return ParseRegistration(store, c, text)
	})
}

// ParseRegistration reads the registration of a closure from what `nix-store
// --load-db` reads and `nix-store --dump-db` writes. Each store path has these
// lines: itself, the SHA-256 of its NAR, the size of the NAR, the deriver or
// nothing, the number of references, the references. The result has the order of
// the closure, with references sorted, and keeps no name from outside the closure:
// it is what Restrict would return.
//
// The text is hostile. It must register every path of the closure exactly once,
// each reference must be in the closure, and nothing may be cut off or left over;
// an error about a line has its number. The text is read line by line, and the
// memory is in proportion to the closure and its references, whatever the length
// of the text.
func ParseRegistration(store Store, c Closure, text io.Reader) ([]PathInfo, error) {
	r := newRegistrationReader(store, c)
	if err := r.read(text); err != nil {
		return nil, err
	}
	return r.registration()
}

// registrationReader reads the registration of a closure from one text or more.
type registrationReader struct {
	store   Store
	closure Closure
	index   map[BaseName]int // into closure.Names
	infos   []PathInfo       // in the order of closure.Names; Name is empty before its lines are read
	lines   lineReader
	found   []int // the references of one path, as indexes
}

func newRegistrationReader(store Store, c Closure) *registrationReader {
	r := &registrationReader{
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

// read reads a whole text.
func (r *registrationReader) read(text io.Reader) error {
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
func (r *registrationReader) registration() ([]PathInfo, error) {
	for i, name := range r.closure.Names {
		if r.infos[i].Name == "" {
			return nil, notRegistered(r.store, name)
		}
	}
	return r.infos, nil
}

// pathInfo reads the lines of one path, of which the first was read.
func (r *registrationReader) pathInfo(line []byte) error {
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

// references reads the number of references and the references, and sorts them.
func (r *registrationReader) references(of BaseName) ([]BaseName, error) {
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
	slices.Sort(r.found) // as the names are sorted
	references := make([]BaseName, len(r.found))
	for at, i := range r.found {
		references[at] = r.closure.Names[i]
		if at > 0 && i == r.found[at-1] {
			return nil, fmt.Errorf("%s references %s twice", r.store.Path(of), r.store.Path(references[at]))
		}
	}
	return references, nil
}

// line returns the next line of a path that is not the first.
func (r *registrationReader) line() ([]byte, error) {
	line, err := r.lines.next()
	if errors.Is(err, io.EOF) && len(line) == 0 {
		r.lines.number++
		return nil, errors.New("missing: the text ends in the middle of a store path's lines")
	}
	return line, cutOff(line, err)
}

// cutOff explains the error of a line without a line break.
func cutOff(line []byte, err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%q: without a line break at its end, so it may be cut off", line)
	}
	return err
}

// path returns the index of a store path in the closure, or -1 if the closure does
// not have it.
func (r *registrationReader) path(line []byte) (int, error) {
	if dir := len(r.store.Dir); len(line) > dir && string(line[:dir]) == r.store.Dir && line[dir] == '/' {
		if i, ok := r.index[BaseName(line[dir+1:])]; ok {
			return i, nil
		}
	}
	_, err := r.store.ParseExact(string(line))
	return -1, err
}

func (r *registrationReader) count() (int64, error) {
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

func notRegistered(store Store, name BaseName) error {
	return fmt.Errorf("%s is in the closure, but not registered", store.Path(name))
}

func registeredTwice(store Store, name BaseName) error {
	return fmt.Errorf("%s is registered a second time", store.Path(name))
}

const narHashPrefix = "sha256:"

// ParseNarHash reads a SHA-256 in any form that Nix writes one: in hexadecimal
// or Nix's base 32, with `sha256:` before it or not, or in base 64 after
// `sha256-`. It returns the form of Nix's database, `sha256:` and 64 hexadecimal
// digits.
func ParseNarHash(s string) (string, error) {
	var sum []byte
	ok := false
	if sri, is := strings.CutPrefix(s, "sha256-"); is {
		var err error
		sum, err = base64.StdEncoding.DecodeString(sri)
		// The decoder skips line breaks and forgives bits that are set in vain.
		ok = err == nil && base64.StdEncoding.EncodeToString(sum) == sri
	} else if digits := strings.TrimPrefix(s, narHashPrefix); len(digits) == 64 {
		sum, _ = hex.DecodeString(digits)
		ok = hex.EncodeToString(sum) == digits
	} else {
		sum, ok = parseBase32(digits)
	}
	if !ok || len(sum) != 32 {
		return "", fmt.Errorf("%q: not a SHA-256 as Nix writes it", s)
	}
	return narHashPrefix + hex.EncodeToString(sum), nil
}

// parseBase32 reads 32 bytes in Nix's base 32: a number whose least significant
// byte is the first, written with the most significant digit first.
func parseBase32(s string) ([]byte, bool) {
	if len(s) != 52 {
		return nil, false
	}
	sum := make([]byte, 32)
	for i := range len(s) {
		digit := strings.IndexByte(hashAlphabet, s[len(s)-1-i])
		if digit < 0 {
			return nil, false
		}
		at, shift := i*5/8, i*5%8
		sum[at] |= byte(digit << shift)
		carry := byte(digit >> (8 - shift))
		if at+1 < len(sum) {
			sum[at+1] |= carry
		} else if carry != 0 {
			return nil, false
		}
	}
	return sum, true
}

// Restrict returns the registration of the closure, sorted: infos, with what
// must not show in a container left out.
//
// The infos must be of the paths of the closure, all of them and each once, and
// their references must be in it. Derivers and the outputs of derivations are
// not references: those that are not in the closure would be foreign names in
// the container, and are dropped. So no name remains that is not the closure's.
func Restrict(c Closure, infos []PathInfo) ([]PathInfo, error) {
	dir, _, _ := strings.Cut(c.text, "\n")
	store := Store{Dir: dir}
	inside := func(b BaseName) bool {
		_, found := slices.BinarySearch(c.Names, b)
		return found
	}
	infos = slices.Clone(infos)
	slices.SortFunc(infos, func(a, b PathInfo) int { return strings.Compare(string(a.Name), string(b.Name)) })
	for i, info := range infos {
		switch {
		case i > 0 && info.Name == infos[i-1].Name:
			return nil, registeredTwice(store, info.Name)
		case i == len(c.Names) || info.Name < c.Names[i]:
			return nil, fmt.Errorf("%s is registered, but not in the closure", store.Path(info.Name))
		case info.Name > c.Names[i]:
			return nil, notRegistered(store, c.Names[i])
		}
		references := slices.Clone(info.References)
		slices.Sort(references)
		for _, r := range references {
			if !inside(r) {
				return nil, fmt.Errorf("%s references %s, which is not in the closure", store.Path(info.Name), store.Path(r))
			}
		}
		infos[i].References = slices.Compact(references)
		if info.Deriver != "" && !inside(info.Deriver) {
			infos[i].Deriver = ""
		}
		infos[i].Outputs = slices.DeleteFunc(slices.Clone(info.Outputs), func(o Output) bool { return !inside(o.Path) })
	}
	if len(infos) < len(c.Names) {
		return nil, notRegistered(store, c.Names[len(infos)])
	}
	return infos, nil
}

// RegistrationName is the name of the file, in the directory of registrations,
// that has the registration of the closure with this digest: as Nix's database
// has it where info is empty, else as this closure-info has it.
//
// A closure-info is made by whoever may add to the store, and what it claims of
// others' paths (hashes, sizes) need not be so. So what was made from it is kept
// apart, and must never be served to a container that did not name it.
//
// As with a view, what was made before a Resolution's Since may be of files that
// have been collected and come back.
func RegistrationName(digest string, info BaseName) string {
	if info == "" {
		return digest
	}
	return digest + "-" + string(info[:hashLength])
}
