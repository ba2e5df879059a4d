// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// StageHook is a hook and its stage
// (https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config.md#posix-platform-hooks).
type StageHook struct {
	Stage string
	specs.Hook
}

// HookEnv returns the environment of a hook entry. It must not be empty, because some
// runtimes would pass the image's on. The hook reads no variable, and the Go runtime in it
// this one: for one processor it starts fewer threads, which are a tenth of a hook's time.
func HookEnv() []string { return []string{"GOMAXPROCS=1"} }

// Rewrite returns the text of a config.json without the mounts at the positions in without,
// and with these hooks. Each hook comes after the others of its stage, and replaces an
// equal one.
//
// It guarantees that every other field, known or unknown, keeps its value. If there is
// nothing to change, it returns the text itself.
func Rewrite(text []byte, without []int, hooks ...StageHook) ([]byte, error) {
	if len(without)+len(hooks) == 0 {
		return text, nil
	}
	fields, err := topLevel(text)
	if err != nil {
		return nil, err
	}
	if len(without) > 0 {
		if fields["mounts"], err = withoutMounts(fields["mounts"], without); err != nil {
			return nil, err
		}
	}
	if len(hooks) > 0 {
		if fields["hooks"], err = withHooks(fields["hooks"], hooks); err != nil {
			return nil, err
		}
	}
	return marshal(fields)
}

func withoutMounts(text json.RawMessage, positions []int) (json.RawMessage, error) {
	var mounts []json.RawMessage
	if err := json.Unmarshal(text, &mounts); err != nil {
		return nil, fmt.Errorf("mounts: not of the expected form: %w", err)
	}
	kept := make([]json.RawMessage, 0, len(mounts))
	for i, m := range mounts {
		if !slices.Contains(positions, i) {
			kept = append(kept, m)
		}
	}
	return marshal(kept)
}

func withHooks(text json.RawMessage, hooks []StageHook) (json.RawMessage, error) {
	stages := map[string]json.RawMessage{}
	if err := unmarshalOptional(text, &stages); err != nil {
		return nil, fmt.Errorf("hooks: not of the expected form: %w", err)
	}
	if stages == nil {
		stages = map[string]json.RawMessage{}
	}
	for _, h := range hooks {
		for name := range stages {
			if name != h.Stage && strings.EqualFold(name, h.Stage) {
				return nil, fmt.Errorf("field \"hooks.%s\": some runtimes take it for \"hooks.%s\", in its place, "+
					"and some do not", name, h.Stage)
			}
		}
		with, err := withHook(stages[h.Stage], h)
		if err != nil {
			return nil, err
		}
		stages[h.Stage] = with
	}
	return marshal(stages)
}

func withHook(text json.RawMessage, h StageHook) (json.RawMessage, error) {
	var hooks []json.RawMessage
	if err := unmarshalOptional(text, &hooks); err != nil {
		return nil, fmt.Errorf("hooks.%s: not of the expected form: %w", h.Stage, err)
	}
	kept := make([]json.RawMessage, 0, len(hooks)+1)
	for i, text := range hooks {
		var other specs.Hook
		if err := json.Unmarshal(text, &other); err != nil {
			return nil, fmt.Errorf("hooks.%s[%d]: not of the expected form: %w", h.Stage, i, err)
		}
		if other.Path != h.Path || !slices.Equal(other.Args, h.Args) {
			kept = append(kept, text)
		}
	}
	own, err := marshal(h.Hook)
	if err != nil {
		return nil, err
	}
	return marshal(append(kept, own))
}

// HasAnnotations reports whether a config.json has an annotation of this program, whichever
// of its fields a runtime takes for the annotations. Like runc, it does not look at what
// follows the JSON object.
//
// If there is an annotation, a repeated field is an error, if Rewrite changes that field or
// goes by it: runtimes do not agree on which one counts. A text that mentions no annotation
// is not parsed, so HasAnnotations does not find out whether it is JSON.
func HasAnnotations(text []byte) (bool, error) {
	if !mentionsAnnotations(text) {
		return false, nil
	}
	fields, err := members(text)
	if err != nil {
		return false, err
	}
	carries, twice := false, repeated("", fields)
	for _, f := range fields {
		if !strings.EqualFold(f.name, "annotations") {
			continue
		}
		annotations, err := members(f.value)
		if err != nil {
			return false, fmt.Errorf("annotations: %w", err)
		}
		isOurs := func(m member) bool { _, _, ok := splitKey(m.name); return ok }
		carries = carries || slices.ContainsFunc(annotations, isOurs)
		twice = cmp.Or(twice, repeated("annotations.", annotations))
	}
	if !carries {
		return false, nil
	}
	for _, f := range fields {
		if f.name == "hooks" {
			hooks, err := members(f.value)
			if err != nil {
				return true, fmt.Errorf("hooks: %w", err)
			}
			twice = cmp.Or(twice, repeated("hooks.", hooks))
		}
	}
	if twice != "" {
		return true, fmt.Errorf("field %q: is there twice", twice)
	}
	return true, nil
}

// mentionsAnnotations reports whether a JSON text may have a string with Prefix in it. Every
// string of JSON is written as it is, but for escapes. So there is none if the text does not
// have the bytes of Prefix without its slash, which may be escaped, and if no backslash
// begins an escape that can stand for another of its characters.
func mentionsAnnotations(text []byte) bool {
	if bytes.Contains(text, []byte(strings.TrimSuffix(Prefix, "/"))) {
		return true
	}
	for {
		i := bytes.IndexByte(text, '\\')
		if i < 0 {
			return false
		}
		if i+1 == len(text) || !strings.ContainsRune(`"\/bfnrt`, rune(text[i+1])) {
			return true // \u, or no JSON
		}
		text = text[i+2:]
	}
}

// member is one name and value of a JSON object.
type member struct {
	name  string
	value json.RawMessage
}

// members splits a JSON object into its members, in order. null has none.
func members(text []byte) ([]member, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	begin, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	if begin == nil {
		return nil, nil
	}
	if begin != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	var all []member
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("not a JSON object: %w", err)
		}
		m := member{name: name.(string)} // the decoder accepts only a string there
		if err := d.Decode(&m.value); err != nil {
			return nil, fmt.Errorf("not a JSON object: %w", err)
		}
		all = append(all, m)
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	return all, nil
}

// repeated returns the first name that occurs twice, after prefix; empty: none.
func repeated(prefix string, all []member) string {
	seen := map[string]bool{}
	for _, m := range all {
		if seen[m.name] {
			return prefix + m.name
		}
		seen[m.name] = true
	}
	return ""
}

func unmarshalOptional(text json.RawMessage, to any) error {
	if text == nil {
		return nil
	}
	return json.Unmarshal(text, to)
}

// marshal is json.Marshal without the escapes for <, > and &: the engines' encoders do not
// agree on them.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
