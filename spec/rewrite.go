// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// WithoutMounts returns the text of a config.json without the mounts at these
// positions. Every other field, known or not, keeps its value as it was
// written; without positions, the text is returned as it is.
func WithoutMounts(text []byte, positions []int) ([]byte, error) {
	if len(positions) == 0 {
		return text, nil
	}
	fields, err := topLevel(text)
	if err != nil {
		return nil, err
	}
	var mounts []json.RawMessage
	if err := json.Unmarshal(fields["mounts"], &mounts); err != nil {
		return nil, fmt.Errorf("mounts: not of the expected form: %w", err)
	}
	kept := make([]json.RawMessage, 0, len(mounts))
	for i, m := range mounts {
		if !slices.Contains(positions, i) {
			kept = append(kept, m)
		}
	}
	if fields["mounts"], err = marshal(kept); err != nil {
		return nil, err
	}
	return marshal(fields)
}

// marshal is json.Marshal that leaves <, > and & alone, as the engines' own
// encoders do not agree on them.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
