// SPDX-License-Identifier: Apache-2.0

package closure

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// script makes a program that the shell runs.
func script(t *testing.T, text string) string {
	t.Helper()
	path := write(t, t.TempDir()+"/program", "#!/bin/sh\n"+text)
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// What the resolver is called with, to the last variable.
func TestResolverCall(t *testing.T) {
	t.Setenv("LD_PRELOAD", "/image/evil.so")
	t.Setenv("NIX_CLOSURE_LEAK", "1")
	out := t.TempDir()
	digest := strings.Repeat("0", 64)
	program := script(t, fmt.Sprintf(`tr '\0' '\n' </proc/$$/environ >%[1]s/env
printf '%%s\n' "$@" >%[1]s/args
pwd >%[1]s/pwd
echo '{"digest":"%[2]s","paths":2,"pins":["p"],"since":1}'
`, out, digest))
	r := Resolver{Program: program, Args: []string{"--config", "/etc/c.toml"}}
	for _, c := range []struct {
		query Query
		args  string
	}{
		{Query{Roots: names("a b")}, "resolve\n--json\n--config\n/etc/c.toml\n--\n" + nixStore.Path(named("a")) + "\n" +
			nixStore.Path(named("b")) + "\n"},
		{Query{Info: named("i")}, "resolve\n--json\n--config\n/etc/c.toml\n--closure-info\n--\n" +
			nixStore.Path(named("i")) + "\n"},
	} {
		res, err := r.Resolve(t.Context(), nixStore, c.query)
		if err != nil || res.Digest != digest || res.Paths != 2 || res.Since == 0 || len(res.Pins) != 1 {
			t.Errorf("%+v, %v", res, err)
		}
		if got := read(t, out+"/args"); got != c.args {
			t.Errorf("called with %q, want %q", got, c.args)
		}
		if got := read(t, out+"/env"); got != "LC_ALL=C\n" {
			t.Errorf("the environment is %q", got)
		}
		if got := read(t, out+"/pwd"); got != "/\n" {
			t.Errorf("the directory is %q", got)
		}
	}
}

func TestResolverNotUnderstood(t *testing.T) {
	good := `{"digest":"` + strings.Repeat("0", 64) + `","paths":1,"pins":["p"]}`
	for _, c := range []struct{ name, script, err string }{
		{"good", "echo '" + good + "'", ""},
		{"nothing", "true", "PROGRAM: not understood: \"\"; is it of the same version as the hook?"},
		{"no digest", `echo '{"pins":["p"]}'`, "PROGRAM: not understood: "},
		{"no pins", `echo '{"digest":"` + strings.Repeat("0", 64) + `"}'`, "PROGRAM: not understood: "},
		{"a digest that is a path", `echo '{"digest":"` + strings.Repeat("../", 21) + `x","pins":["p"]}'`,
			"PROGRAM: not understood: "},
		{"text after it", "echo '" + good + "'; echo more", "PROGRAM: not understood: "},
		{"usage", "echo Usage; echo more", "PROGRAM: not understood: \"Usage\""},
		{"fails after it answered", "echo '" + good + "'; exit 1", "running PROGRAM: exit status 1"},
		{"fails with a message", "echo 'nix-closure: /nix/store/x is not valid' >&2; echo more >&2; exit 1",
			"/nix/store/x is not valid"},
		{"fails without one", "exit 3", "running PROGRAM: exit status 3"},
	} {
		program := script(t, c.script)
		res, err := Resolver{Program: program}.Resolve(t.Context(), nixStore, Query{Roots: names("a")})
		want := strings.ReplaceAll(c.err, "PROGRAM", program)
		if (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", c.name, err, want)
		}
		if err != nil && res.Digest != "" {
			t.Errorf("%s: %+v with an error", c.name, res)
		}
	}
	if _, err := (Resolver{Program: "/nowhere/nix-closure"}).Resolve(t.Context(), nixStore,
		Query{Roots: names("a")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a program: %v", err)
	}
}
