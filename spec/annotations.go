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
	// Namespace is the pod's namespace, as the engine says it; empty: this is no
	// container of Kubernetes.
	Namespace string
}

// Asked are the store paths that the container names.
func (r *Request) Asked() []closure.BaseName {
	if r.ClosureInfo != "" {
		return []closure.BaseName{r.ClosureInfo}
	}
	return r.Roots
}

// annotations that engines add, with which a pod's sandbox (the pause container)
// and the containers in it are told apart.
const (
	criContainerType   = "io.kubernetes.cri.container-type"
	criContainerName   = "io.kubernetes.cri.container-name"
	criNamespace       = "io.kubernetes.cri.sandbox-namespace"
	crioContainerType  = "io.kubernetes.cri-o.ContainerType"
	crioContainerName  = "io.kubernetes.container.name"
	crioNamespace      = "io.kubernetes.pod.namespace"
	containerTypeOfPod = "sandbox"
)

// SetContainer says of a container, which is no sandbox, what its engine says, where
// the annotations do not have it.
func SetContainer(annotations map[string]string, name, namespace string) {
	if isSandbox(annotations) {
		annotations[criContainerType] = "container"
	}
	for _, a := range []struct{ cri, crio, value string }{
		{criContainerName, crioContainerName, name}, {criNamespace, crioNamespace, namespace},
	} {
		if annotations[a.cri] == "" && annotations[a.crio] == "" && a.value != "" {
			annotations[a.cri] = a.value
		}
	}
}

// isSandbox tells whether this is a pod's sandbox. The engine sets one of the
// annotations on every container, and the other may be a pod's author's: where
// they disagree, it is a container.
func isSandbox(annotations map[string]string) bool {
	sandbox := false
	for _, key := range []string{criContainerType, crioContainerType} {
		switch annotations[key] {
		case "":
		case containerTypeOfPod:
			sandbox = true
		default:
			return false
		}
	}
	return sandbox
}

// Matters tells whether an annotation has a say in what a container gets: it is of
// this program, or says which container this is.
func Matters(annotation string) bool {
	_, _, ok := splitKey(annotation)
	return ok || slices.Contains([]string{criContainerType, criContainerName, criNamespace, crioContainerType, crioContainerName, crioNamespace}, annotation)
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
// nothing, as a pod's sandbox never does. What is not understood in full is an
// error: a typing mistake must not weaken the isolation.
func ParseAnnotations(store closure.Store, annotations map[string]string) (*Request, error) {
	if !Annotated(annotations) || isSandbox(annotations) {
		return nil, nil
	}
	own, err := ofContainer(annotations)
	if err != nil || len(own) == 0 {
		return nil, err
	}
	namespace, err := said(annotations, "namespace", criNamespace, crioNamespace)
	if err != nil {
		return nil, err
	}
	request := &Request{Listing: true, Namespace: namespace}
	// Sorted, so that the same mistakes give the same message each time.
	for _, key := range slices.Sorted(maps.Keys(own)) {
		if err := request.set(store, key, own[key].value); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", own[key].annotation, err)
		}
	}
	if len(request.Roots) == 0 && request.ClosureInfo == "" {
		return nil, fmt.Errorf("annotations: neither %s%s nor %s%s is given; name at least one store path", Prefix, KeyRoots, Prefix, KeyClosureInfo)
	}
	if request.Writable && request.Mode == ModeBind {
		return nil, fmt.Errorf("annotations: %s%s is true, which one overlay with a layer in memory does, and %s%s is %s; ask for mode %s or %s",
			Prefix, KeyWritable, Prefix, KeyMode, ModeBind, ModeOverlay, ModeAuto)
	}
	if len(request.Roots) > 0 && request.ClosureInfo != "" {
		return nil, fmt.Errorf("annotations: both %s%s and %s%s are given; take one of them", Prefix, KeyRoots, Prefix, KeyClosureInfo)
	}
	return request, nil
}

type setting struct{ annotation, value string }

// ofContainer returns the settings, by key, that are for this container: the
// pod-wide ones, and its own in their place. What the container says of its
// roots or closure-info takes the place of both.
func ofContainer(annotations map[string]string) (map[string]setting, error) {
	name, err := said(annotations, "name", criContainerName, crioContainerName)
	if err != nil {
		return nil, err
	}
	everyone, own := map[string]setting{}, map[string]setting{}
	for annotation, value := range annotations {
		container, key, ok := splitKey(annotation)
		switch {
		case !ok:
		case container == "" && strings.HasPrefix(annotation, "."):
			return nil, fmt.Errorf("annotation %s: no container's name before the dot", annotation)
		case container == "":
			everyone[key] = setting{annotation, value}
		case name == "":
			return nil, fmt.Errorf("annotation %s: is for one container of a pod, and the engine does not say which one this is; leave out %q", annotation, container+".")
		case container == name:
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

// said is what the engine says of a container, in one of two annotations. It sets
// the one on every container, and the other may be a pod's author's: where they
// disagree, nobody is believed.
func said(annotations map[string]string, what, cri, crio string) (string, error) {
	a, b := annotations[cri], annotations[crio]
	if a != "" && b != "" && a != b {
		return "", fmt.Errorf("annotations %s and %s disagree on the container's %s: %q, %q", cri, crio, what, a, b)
	}
	if a == "" {
		a = b
	}
	return a, nil
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
		info, err := store.Parse(value)
		if err == nil && value != store.Path(info) {
			err = fmt.Errorf("%q: below a store path; the closure-info must be one itself", value)
		}
		r.ClosureInfo = info
		return err
	case KeyMode:
		switch r.Mode = Mode(value); r.Mode {
		case ModeAuto, ModeOverlay, ModeBind:
			return nil
		}
		return fmt.Errorf("%q is not a mode; use %s, %s or %s", value, ModeAuto, ModeOverlay, ModeBind)
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

// isSeparator tells white space and commas, which separate roots.
func isSeparator(r rune) bool { return strings.ContainsRune(" \t\r\n\v\f,", r) }
