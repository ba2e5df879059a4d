// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/plainjson"
	"github.com/nix-closure/nix-closure/spec"
)

// text returns the record as JSON. It is what json.Marshal returns, and takes less of a
// start: see plainjson.
func (r Record) text() ([]byte, error) {
	created, err := r.Created.MarshalText()
	if err != nil || r.Kind != "" || r.Mount != nil || r.PidStart > math.MaxInt64 {
		return json.Marshal(r)
	}
	var w plainjson.Writer
	optional := func(name, value string) {
		if value != "" {
			w.String(name, value)
		}
	}
	w.String("id", r.ID)
	w.String("bundle", r.Bundle)
	optional("stated", r.Stated)
	w.Int("pid", int64(r.Pid))
	w.Int("pidStart", int64(r.PidStart))
	if r.SharedPID {
		w.Bool("sharedPID", true)
	}
	optional("engine", string(r.Engine))
	optional("way", r.Way)
	if len(r.Roots) > 0 {
		roots := make([]string, len(r.Roots))
		for i, root := range r.Roots {
			roots[i] = string(root)
		}
		w.Strings("roots", roots)
	}
	optional("closureInfo", string(r.ClosureInfo))
	w.String("mode", string(r.Mode))
	if r.Writable {
		w.Bool("writable", true)
	}
	w.String("request", r.Request)
	w.String("digest", r.Digest)
	optional("view", r.View)
	optional("registration", r.Registration)
	w.String("gcRoots", r.GCRoots)
	w.String("created", string(created))
	w.Bool("attached", r.Attached)
	return w.Text(), nil
}

// parseRecord parses what text returned.
func parseRecord(text []byte) (Record, error) {
	if r, ok := parsePlainRecord(text); ok {
		return r, nil
	}
	var r Record
	err := json.Unmarshal(text, &r)
	if err == nil && !bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		err = errors.New("not a JSON object") // the decoder accepts null
	}
	return r, err
}

// recordFields are the names in a record's text.
var recordFields = []string{
	"id", "bundle", "stated", "pid", "pidStart", "sharedPID", "engine", "way", "roots", "closureInfo", "mode",
	"writable", "request", "digest", "view", "registration", "gcRoots", "created", "attached",
	"kind", "mount", // of a view on the host, whose record is left to the decoder
}

// parsePlainRecord parses a container's record that is written plainly.
func parsePlainRecord(text []byte) (r Record, ok bool) {
	ok = true
	p := plainjson.New(text)
	p.Object(recordFields, func(i int) {
		switch recordFields[i] {
		case "id":
			r.ID = p.String()
		case "bundle":
			r.Bundle = p.String()
		case "stated":
			r.Stated = p.String()
		case "pid":
			r.Pid = int(p.Int())
		case "pidStart":
			start := p.Int()
			r.PidStart, ok = uint64(start), ok && start >= 0
		case "sharedPID":
			r.SharedPID = p.Bool()
		case "engine":
			r.Engine = spec.Engine(p.String())
		case "way":
			r.Way = p.String()
		case "roots":
			r.Roots = []closure.BaseName{}
			p.Array(func() { r.Roots = append(r.Roots, closure.BaseName(p.String())) })
		case "closureInfo":
			r.ClosureInfo = closure.BaseName(p.String())
		case "mode":
			r.Mode = spec.Mode(p.String())
		case "writable":
			r.Writable = p.Bool()
		case "request":
			r.Request = p.String()
		case "digest":
			r.Digest = p.String()
		case "view":
			r.View = p.String()
		case "registration":
			r.Registration = p.String()
		case "gcRoots":
			r.GCRoots = p.String()
		case "created":
			ok = r.Created.UnmarshalText([]byte(p.String())) == nil && ok
		case "attached":
			r.Attached = p.Bool()
		default:
			ok = false
			p.Skip()
		}
	})
	return r, p.End() && ok
}
