// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"syscall"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/config"
)

// unknownKey is in the error of a configuration that has a line too many.
var unknownKey = regexp.MustCompile(`line ([0-9]+): unknown key`)

// configured reads this program's configuration. Without it, there is no saying what
// else is as it should be.
func (e *exam) configured() bool {
	c, err := config.Read(e.Config)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
			e.unknown("", "the configuration", err)
			return false
		}
		f := Finding{
			ID: "config", Severity: Closed, What: "the configuration is not understood: " + oneLine(err),
			Consequence: "no container with an annotation starts, and by the wrapper none at all",
			Advice:      "docs/configuration.md has every key",
		}
		if line := unknownKey.FindStringSubmatch(err.Error()); line != nil {
			f.Fix = []string{fmt.Sprintf("sed -i '%ss/^/# /' %s", line[1], quote(e.Config))}
		}
		e.find(f)
		return false
	}
	e.config = c
	info, err := os.Stat(e.Config)
	if err != nil {
		return true
	}
	e.fact("configuration", e.Config)
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		e.find(Finding{
			ID: "config-owner", Severity: Warning, What: fmt.Sprintf("%s belongs to user %d", e.Config, st.Uid),
			Consequence: "that user decides what containers may ask for",
			Fix:         []string{"chown root:root " + quote(e.Config)},
		})
	}
	if info.Mode().Perm()&0o022 != 0 {
		e.find(Finding{
			ID: "config-mode", Severity: Warning, What: fmt.Sprintf("others can write to %s (mode %04o)", e.Config,
				info.Mode().Perm()),
			Consequence: "they decide what containers may ask for", Fix: []string{"chmod go-w " + quote(e.Config)},
		})
	}
	return true
}

// policy counts what each rule allows of what is in the store now.
func (e *exam) policy() {
	p := e.config.Policy()
	if len(p.Rules) == 0 {
		e.fact("policy", "no [[allow]]: any valid store path may be asked for")
		return
	}
	entries, err := os.ReadDir(p.Store.Dir)
	if err != nil {
		e.unknown("", "the policy", err)
		return
	}
	var all []closure.BaseName
	for _, entry := range entries {
		if base, err := closure.ParseBaseName(entry.Name()); err == nil {
			all = append(all, base)
		}
	}
	for i, rule := range p.Rules {
		allowed, ignored := p.Matches(rule, all)
		what := fmt.Sprintf("[[allow]] number %d (%s)", i+1, strings.Join(rule.Roots, " "))
		e.fact("policy", fmt.Sprintf("%s allows %d of %d store paths", what, allowed, len(all)))
		if allowed > 0 && ignored == nil {
			continue
		}
		f := Finding{
			ID: "policy", Severity: Warning, What: what + " allows none of the store paths that there are",
			Consequence: "containers that it is for are refused",
			Advice:      "a glob's `*` does not match a slash; links must lead to store paths that are there",
		}
		if ignored != nil {
			f.ID, f.What = "policy-links", what+": links in "+ignored.Dir+" are ignored: "+ignored.Why
			f.Advice = "only root may be able to change a directory whose links allow something"
			if ignored.Writable {
				dir := quote(ignored.Dir)
				f.Fix = []string{"chown root:root " + dir + " && chmod go-w " + dir}
			}
		}
		e.find(f)
	}
}
