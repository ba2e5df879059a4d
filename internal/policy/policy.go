// SPDX-License-Identifier: Apache-2.0

// Package policy decides which store paths containers may ask for: by the rules of the
// configuration (policy.go), and by the symbolic links that rules name (links.go).
package policy

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/nix-closure/nix-closure/closure"
)

// Policy is what one host allows.
type Policy struct {
	Store closure.Store
	// RuntimeDir is the runtime directory. It has links to what containers ask for, so no
	// link in it allows anything.
	RuntimeDir string
	// Rules allow store paths. Without a rule, every store path is allowed.
	Rules []Rule
}

// Rule is an [[allow]] of the configuration: it names the roots that containers may ask
// for.
type Rule struct {
	Namespaces []string `toml:"namespaces"` // of Kubernetes; nil: every container
	// Roots are globs as for path.Match, with or without wildcards: `*` stops at a slash,
	// and also matches a dot at the beginning.
	//
	// A glob below the store directory matches names of store paths. Any other glob matches
	// symbolic links whose targets are store paths.
	Roots []string `toml:"roots"`
}

func (r Rule) appliesTo(namespace string) bool {
	return len(r.Namespaces) == 0 || namespace != "" && slices.Contains(r.Namespaces, namespace)
}

// Validate refuses a rule that can have no meaning, and one that a reader could understand
// as more than it allows.
func (r Rule) Validate(storeDir string) error {
	if r.Namespaces != nil && len(r.Namespaces) == 0 {
		return errors.New("namespaces = []: names none; leave it out for every container")
	}
	if slices.Contains(r.Namespaces, "") {
		return errors.New(`namespaces: "": not the name of a namespace; leave namespaces out for every container`)
	}
	if len(r.Roots) == 0 {
		return errors.New("roots: names none; say which store paths, or links to them, may be asked for")
	}
	for _, glob := range r.Roots {
		if err := checkGlob(storeDir, glob); err != nil {
			return fmt.Errorf("roots: %q: %w", glob, err)
		}
	}
	return nil
}

func checkGlob(storeDir, glob string) error {
	if !path.IsAbs(glob) || path.Clean(glob) != glob || glob == "/" {
		return errors.New("not an absolute path without `.`, `..` or a slash too many")
	}
	if glob == storeDir {
		return fmt.Errorf("can never match, for a store path lies below it; every store path is %q", storeDir+"/*")
	}
	components := glob[1:]
	if below, ok := strings.CutPrefix(glob, storeDir+"/"); ok {
		first, _, more := strings.Cut(below, "/")
		if more {
			return fmt.Errorf("can never match, for a store path is directly below %s; name the store path itself: %q",
				storeDir, storeDir+"/"+first)
		}
		components = below // the store directory is no glob
	}
	for component := range strings.SplitSeq(components, "/") {
		if _, err := path.Match(component, ""); err != nil {
			return errors.New("not a well-formed glob; a `[` is not closed, or a `\\` is the last; " +
				"`\\` before a character makes it an ordinary one")
		}
		// For a shell, [!s] is every character but s. For path.Match, it is ! or s.
		if strings.Contains(component, "[!") {
			return errors.New("`[!` is not what it is in a shell; write `[^` for every other character, " +
				"`[\\!` for an exclamation mark")
		}
	}
	return nil
}

// Check refuses store paths that a container may not ask for. namespace is the container's
// Kubernetes namespace; empty: it has none, and no rule with namespaces applies.
//
// It guarantees, against every user of the host but root, and against everybody who may add
// to the store, that a store path is allowed only if root named it: in a glob of the
// configuration, or in a symbolic link that such a glob finds. It reads the links at each
// call, so a link that root makes or removes counts from the next container on.
//
// It does not guarantee that a store path deserves its name. A user who may add to the
// store may add a store path with any name, and let it refer to any other. Against such a
// user, names are no protection, but links are.
func (p Policy) Check(namespace string, paths []closure.BaseName) error {
	if len(p.Rules) == 0 {
		return nil
	}
	var rules []Rule
	for _, rule := range p.Rules {
		if rule.appliesTo(namespace) {
			rules = append(rules, rule)
		}
	}
	w := p.walk(rules, paths)
	if len(w.left) == 0 {
		return nil
	}
	whose := "a container without a Kubernetes namespace"
	if namespace != "" {
		whose = fmt.Sprintf("namespace %q", namespace)
	}
	return fmt.Errorf("%s is not allowed here: no [[allow]] of the configuration names it for %s; "+
		"add it there, or ask for another%s", w.store.Path(w.left[0]), whose, w.ignored)
}

// walk takes off the paths what rules allow.
func (p Policy) walk(rules []Rule, paths []closure.BaseName) walk {
	w := walk{store: p.Store, left: slices.Clone(paths)}
	var globs []string
	for _, rule := range rules {
		for _, glob := range rule.Roots {
			if name, ok := strings.CutPrefix(glob, p.Store.Dir+"/"); ok {
				w.allow(func(b closure.BaseName) bool { return matches(name, string(b)) })
			} else {
				globs = append(globs, glob)
			}
		}
	}
	if len(w.left) > 0 && len(globs) > 0 {
		w.find(p.RuntimeDir, globs)
	}
	return w
}

// Matches counts which of the paths one rule allows, to whom it applies. A directory
// whose links are ignored is said.
func (p Policy) Matches(rule Rule, paths []closure.BaseName) (count int, ignored *Ignored) {
	w := p.walk([]Rule{rule}, paths)
	return len(paths) - len(w.left), w.ignored
}

// matches reports whether a component of a path matches a component of a glob.
func matches(glob, name string) bool {
	ok, err := path.Match(glob, name)
	return ok && err == nil
}
