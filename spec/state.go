// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/nix-closure/nix-closure/internal/plainjson"
)

// State is the part of the OCI state that a hook needs. The runtime writes it to the hook's
// standard input
// (https://github.com/opencontainers/runtime-spec/blob/v1.3.0/runtime.md#state).
type State struct {
	ID          string            `json:"id"`
	Pid         int               `json:"pid"` // 0: none; -1: the runtime does not say (gVisor)
	Bundle      string            `json:"bundle"`
	Annotations map[string]string `json:"annotations"`
}

// maxID leaves room for what the names of a container's files add to its ID, in bytes.
const maxID = 200

// validID accepts the IDs that runc and crun accept, except those that are no plain file
// name or a hidden one. The ID becomes the name of a file and of a directory.
func validID(id string) bool {
	if id == "" || len(id) > maxID || id[0] == '.' {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '_', c == '+', c == '-', c == '.':
		default:
			return false
		}
	}
	return true
}

// ErrNoState says that a text is not an OCI state.
var ErrNoState = errors.New("is not JSON of the expected form")

// ParseState parses an OCI state. After an error, it still returns the annotations, and the
// ID if that is valid, so that a message can name the container.
func ParseState(text []byte) (State, error) {
	const where = "the OCI state on standard input"
	s, ok := parsePlainState(text)
	if !ok {
		s = State{}
		if err := json.Unmarshal(text, &s); err != nil {
			return State{}, fmt.Errorf("%s %w: %w", where, ErrNoState, err)
		}
	}
	if id := s.ID; id == "" || !validID(id) {
		s.ID = ""
		if id == "" {
			return s, errors.New(where + " has no id")
		}
		return s, fmt.Errorf("%s: id %q: not 1 to %d letters, digits and _+-. with no dot first", where, id, maxID)
	}
	if !filepath.IsAbs(s.Bundle) {
		return s, fmt.Errorf("%s: bundle %q: not an absolute path", where, s.Bundle)
	}
	return s, nil
}

// parsePlainState parses a state that is written plainly; see plainjson.
func parsePlainState(text []byte) (s State, ok bool) {
	r := plainjson.New(text)
	r.Object([]string{"id", "pid", "bundle", "annotations"}, func(i int) {
		switch i {
		case 0:
			s.ID = r.String()
		case 1:
			s.Pid = int(r.Int())
		case 2:
			s.Bundle = r.String()
		case 3:
			s.Annotations = r.Strings()
		}
	})
	return s, r.End()
}
