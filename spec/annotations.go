// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nix-closure/nix-closure/closure"
)

// Prefix begins every annotation of this program. A Kubernetes pod may put a
// container's name and a dot before it.
const Prefix = "nix-closure/"

// The annotations, without Prefix.
const (
	KeyRoots        = "roots"
	KeyClosureInfo  = "closure-info"
	KeyMode         = "mode"
	KeyRegistration = "registration"
	KeyListing      = "listing"
	KeyWritable     = "writable"
)

var keys = []string{KeyRoots, KeyClosureInfo, KeyMode, KeyRegistration, KeyListing, KeyWritable}

// Mode is how a view is made.
type Mode string

// The modes that can be asked for. ModeAuto becomes one of the others.
const (
	ModeAuto    Mode = "auto"
	ModeOverlay Mode = "overlay"
	ModeBind    Mode = "bind"
)

// Valid tells whether it is one of the modes.
func (m Mode) Valid() bool { return m == ModeAuto || m == ModeOverlay || m == ModeBind }

// Request is what a container's annotations ask for.
type Request struct {
	Roots       []closure.BaseName // in the order given, each once; none where there is a ClosureInfo
	ClosureInfo closure.BaseName   // empty: none
	Mode        Mode               // empty: as the configuration says
	Listing     bool               // whether the store directory can be listed
	// Registration: whether the container has a Nix database of its closure.
	Registration bool
	// Writable: whether store paths may be added inside, in memory.
	Writable bool
	// Sandbox: this is a pod's sandbox, which gets no closure. Of the other fields
	// none is set.
	Sandbox bool
	// Namespace is the pod's namespace, as the engine says it; empty: this is no
	// container of Kubernetes.
	Namespace string
	// IgnoredNamespace is an annotation that names a namespace and is not believed,
	// because an image or a user may have set it; empty: none.
	IgnoredNamespace string
}

// Asked are the store paths that the container names.
func (r *Request) Asked() []closure.BaseName {
	if r.ClosureInfo != "" {
		return []closure.BaseName{r.ClosureInfo}
	}
	return r.Roots
}

// Annotated tells whether any annotation is of this program, known or not.
func Annotated(annotations map[string]string) bool {
	for key := range annotations {
		if _, _, ok := splitKey(key); ok {
			return true
		}
	}
	return false
}

// splitKey takes `[<container>.]nix-closure/<key>` apart.
func splitKey(annotation string) (container, key string, ok bool) {
	before, key, ok := strings.Cut(annotation, Prefix)
	if !ok {
		return "", "", false
	}
	container, dotted := strings.CutSuffix(before, ".")
	return container, key, before == "" || dotted
}

// ParseAnnotations returns what the annotations ask for, or nil if they ask for
// nothing. engine says whose word they are, and id is the container's, or empty
// where it is not known yet. What is not understood in full is an error: a typing
// mistake must not weaken the isolation.
func ParseAnnotations(store closure.Store, engine Engine, id string, annotations map[string]string) (*Request, error) {
	if !Annotated(annotations) {
		return nil, nil
	}
	p, err := podOf(engine, id, annotations)
	if err != nil {
		return nil, err
	}
	if p.sandbox {
		return &Request{Sandbox: true}, nil
	}
	own, err := ofContainer(p, annotations)
	if err != nil || len(own) == 0 {
		return nil, err
	}
	request := &Request{Listing: true, Namespace: p.namespace, IgnoredNamespace: p.ignoredNamespace}
	// Sorted, so that the same mistakes give the same message each time.
	for _, key := range slices.Sorted(maps.Keys(own)) {
		if err := request.set(store, key, own[key].value); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", own[key].annotation, err)
		}
	}
	if len(request.Roots) == 0 && request.ClosureInfo == "" {
		return nil, fmt.Errorf("annotations: neither %s%s nor %s%s is given; "+
			"name at least one store path", Prefix, KeyRoots, Prefix, KeyClosureInfo)
	}
	if request.Writable && request.Mode == ModeBind {
		return nil, fmt.Errorf("annotations: %s%s is true, which one overlay with a layer in memory does, "+
			"and %s%s is %s; ask for mode %s or %s",
			Prefix, KeyWritable, Prefix, KeyMode, ModeBind, ModeOverlay, ModeAuto)
	}
	if len(request.Roots) > 0 && request.ClosureInfo != "" {
		return nil, fmt.Errorf("annotations: both %s%s and %s%s are given; "+
			"take one of them", Prefix, KeyRoots, Prefix, KeyClosureInfo)
	}
	return request, nil
}

type setting struct{ annotation, value string }

// ofContainer returns the settings, by key, that are for this container: the
// pod-wide ones, and its own in their place. What the container says of its
// roots or closure-info takes the place of both.
func ofContainer(p pod, annotations map[string]string) (map[string]setting, error) {
	everyone, own := map[string]setting{}, map[string]setting{}
	for annotation, value := range annotations {
		container, key, ok := splitKey(annotation)
		switch {
		case !ok:
		case container == "" && strings.HasPrefix(annotation, "."):
			return nil, fmt.Errorf("annotation %s: no container's name before the dot", annotation)
		case container == "":
			everyone[key] = setting{annotation, value}
		case p.name == "" && p.ignoredName != "":
			return nil, fmt.Errorf("annotation %s: is for one container of a pod, "+
				"and the one that says which this is, %s, may be an image's or a user's; "+
				"leave out %q, or call the hook with --engine where the engine sets it",
				annotation, p.ignoredName, container+".")
		case p.name == "":
			return nil, fmt.Errorf("annotation %s: is for one container of a pod, "+
				"and the engine does not say which one this is; leave out %q", annotation, container+".")
		case container == p.name:
			own[key] = setting{annotation, value}
		case !slices.Contains(keys, key):
			return nil, fmt.Errorf("annotation %s: %w", annotation, errUnknownKey())
		}
	}
	_, roots := own[KeyRoots]
	_, info := own[KeyClosureInfo]
	if roots || info {
		delete(everyone, KeyRoots)
		delete(everyone, KeyClosureInfo)
	}
	maps.Copy(everyone, own)
	return everyone, nil
}

var errEmpty = errors.New("is empty; name at least one store path")

func (r *Request) set(store closure.Store, key, value string) error {
	switch key {
	case KeyRoots:
		for _, field := range strings.FieldsFunc(value, isSeparator) {
			root, err := store.Parse(field)
			if err != nil {
				return err
			}
			if !slices.Contains(r.Roots, root) {
				r.Roots = append(r.Roots, root)
			}
		}
		if len(r.Roots) == 0 {
			return errEmpty
		}
		return nil
	case KeyClosureInfo:
		if value == "" {
			return errEmpty
		}
		info, err := store.ParseExact(value)
		if errors.Is(err, closure.ErrBelow) {
			err = fmt.Errorf("%q: below a store path; the closure-info must be one itself", value)
		}
		r.ClosureInfo = info
		return err
	case KeyMode:
		r.Mode = Mode(value)
		if !r.Mode.Valid() {
			return fmt.Errorf("%q is not a mode; use %s, %s or %s", value, ModeAuto, ModeOverlay, ModeBind)
		}
		return nil
	case KeyRegistration:
		return parseBool(value, &r.Registration)
	case KeyWritable:
		return parseBool(value, &r.Writable)
	case KeyListing:
		return parseBool(value, &r.Listing)
	}
	return errUnknownKey()
}

func errUnknownKey() error {
	return fmt.Errorf("unknown; the keys are %s", strings.Join(keys, ", "))
}

func parseBool(value string, to *bool) error {
	switch value {
	case "true", "false":
		*to = value == "true"
		return nil
	}
	return fmt.Errorf("%q is neither true nor false", value)
}

// isSeparator tells what separates roots: colons, which survive podman's CSV, a
// quadlet's and a shell's quoting and are in no store path, white space and commas.
func isSeparator(r rune) bool { return strings.ContainsRune(": \t\r\n\v\f,", r) }
