// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
)

// State is what a hook needs of the OCI state that the runtime writes to its
// standard input (runtime-spec, runtime.md, "State").
type State struct {
	ID          string            `json:"id"`
	Pid         int               `json:"pid"` // 0: none; -1: the runtime does not say (gVisor)
	Bundle      string            `json:"bundle"`
	Annotations map[string]string `json:"annotations"`
}

// maxID leaves room for what files named after a container add to its id.
const maxID = 200

// validID accepts what runc and crun accept, less what is no plain file name or
// a hidden one. It becomes the name of a file and of a directory.
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

// ParseState reads an OCI state. Of a state with an error in it, what could be
// read is returned too, so that a message can name the container.
func ParseState(text []byte) (State, error) {
	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		return State{}, fmt.Errorf("the OCI state on standard input is not JSON of the expected form: %w", err)
	}
	switch {
	case s.ID == "":
		return State{}, errors.New("the OCI state on standard input has no id")
	case !validID(s.ID):
		return State{}, fmt.Errorf("the OCI state on standard input: id %q: not 1 to %d letters, digits and _+-. with no dot first", s.ID, maxID)
	case !filepath.IsAbs(s.Bundle):
		return s, fmt.Errorf("the OCI state on standard input: bundle %q: not an absolute path", s.Bundle)
	}
	return s, nil
}
