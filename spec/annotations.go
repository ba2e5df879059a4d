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

// Prefix begins every annotation of this program. In a Kubernetes pod, a container's name
// and a dot may come before it.
const Prefix = "nix-closure/"

// The keys of the annotations, without Prefix. The runtime passes annotations on as they
// are (runtime specification:
// https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config.md#annotations).
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

// The modes that a container can ask for. ModeAuto becomes one of the others when the view
// is made.
const (
	ModeAuto    Mode = "auto"
	ModeOverlay Mode = "overlay"
	ModeBind    Mode = "bind"
)

// Valid reports whether m is one of the modes.
func (m Mode) Valid() bool { return m == ModeAuto || m == ModeOverlay || m == ModeBind }

// Request is what a container's annotations ask for.
type Request struct {
	Roots       []closure.BaseName // in the order given, each once; empty if ClosureInfo is set
	ClosureInfo closure.BaseName   // empty: none
	Mode        Mode               // empty: the configuration decides
	Listing     bool               // whether the store directory can be listed
	// Registration: the container gets a Nix database of its closure.
	Registration bool
	// Writable: processes inside may add store paths, in memory.
	Writable bool
	// Sandbox: this is the sandbox of a pod, which gets no closure. No other field is set.
	Sandbox bool
	// Namespace is the pod's Kubernetes namespace, as the engine says; empty: none.
	Namespace string
	// IgnoredNamespace is an annotation that names a namespace but is ignored, because an
	// image or a user may have set it; empty: none.
	IgnoredNamespace string
}

// Asked returns the store paths that the annotations name.
func (r *Request) Asked() []closure.BaseName {
	if r.ClosureInfo != "" {
		return []closure.BaseName{r.ClosureInfo}
	}
	return r.Roots
}

// Annotated reports whether any annotation has a key of this program, known or unknown.
func Annotated(annotations map[string]string) bool {
	for key := range annotations {
		if _, _, ok := splitKey(key); ok {
			return true
		}
	}
	return false
}

// splitKey splits `[<container>.]nix-closure/<key>`.
func splitKey(annotation string) (container, key string, ok bool) {
	before, key, ok := strings.Cut(annotation, Prefix)
	if !ok {
		return "", "", false
	}
	container, dotted := strings.CutSuffix(before, ".")
	return container, key, before == "" || dotted
}

// ParseAnnotations returns what the annotations ask for, or nil if they ask for nothing.
// engine decides which annotations about pods are believed. id is the container's ID, or
// empty if it is not known yet.
//
// It guarantees, against everybody who can write annotations, that a nil error means that
// every annotation of this program that is for this container was understood. An unknown
// key, an unknown value or a malformed path is an error: a typing mistake must not weaken
// the isolation. Of a sandbox, which gets no closure, the annotations are not read. It does
// not look at the store: the store paths may not exist.
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
	// Sorted, so that the same mistakes always give the same message.
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

// ofContainer returns the settings of this container, by key: those for the pod, replaced
// by the container's own. A container's own roots or closure-info replaces both of the
// pod's.
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

// isSeparator reports whether a character separates roots. A colon survives podman's CSV
// and the quoting of shells and quadlets, and no store path has one. White space and commas
// work too.
func isSeparator(r rune) bool { return strings.ContainsRune(": \t\r\n\v\f,", r) }
