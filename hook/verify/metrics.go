// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"fmt"
	"strings"
	"time"
)

// Metrics is what was found in Prometheus' text format (text-based format 0.0.4).
// troubles is how many things could not be looked at that may hide containers.
func Metrics(results []Result, troubles int, at time.Time, took time.Duration) []byte {
	var b strings.Builder
	metric := func(name, help string) {
		fmt.Fprintf(&b, "# HELP nix_closure_verify_%s %s\n# TYPE nix_closure_verify_%[1]s gauge\n", name, help)
	}
	counts := map[State]int{}
	for _, r := range results {
		counts[r.State]++
	}
	metric("containers", "Containers that ask for a closure, by what was found of them.")
	for _, state := range []State{OK, Wrong, Unknown} {
		fmt.Fprintf(&b, "nix_closure_verify_containers{state=%q} %d\n", state, counts[state])
	}
	metric("container_ok", "Whether a container sees exactly its closure: 1, or 0 for wrong and for unknown.")
	for _, r := range results {
		ok := 0
		if r.State == OK {
			ok = 1
		}
		fmt.Fprintf(&b, "nix_closure_verify_container_ok{id=\"%s\",name=\"%s\",state=\"%s\"} %d\n",
			label(r.ID), label(r.Name), r.State, ok)
	}
	metric("troubles", "Things that could not be looked at, so that containers may be missing.")
	fmt.Fprintf(&b, "nix_closure_verify_troubles %d\n", troubles)
	metric("timestamp_seconds", "When this was found.")
	fmt.Fprintf(&b, "nix_closure_verify_timestamp_seconds %d\n", at.Unix())
	metric("duration_seconds", "How long it took.")
	fmt.Fprintf(&b, "nix_closure_verify_duration_seconds %.3f\n", took.Seconds())
	return []byte(b.String())
}

// label escapes the value of a label.
func label(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s)
}
