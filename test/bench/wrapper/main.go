// SPDX-License-Identifier: Apache-2.0

// Command wrapper measures what nix-closure-runtime adds to the commands of a runtime: it
// becomes a program that does nothing, beside a program that only becomes that one.
//
//	go run ./bench/wrapper -bin DIR -csv FILE
//
// It runs in the directory test.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/nix-closure/nix-closure/test/bench/interleaved"
	"github.com/nix-closure/nix-closure/test/bench/programs"
	"github.com/nix-closure/nix-closure/test/testhost"
)

func main() {
	bin := flag.String("bin", "", "directory of nix-closure-runtime")
	file := flag.String("csv", "", "file for the measurements")
	rounds := flag.Int("rounds", 200, "timed rounds")
	flag.Parse()
	os.Exit(testhost.Run(func() int {
		if err := run(*bin, *file, *rounds); err != nil {
			fmt.Fprintln(os.Stderr, "wrapper:", err)
			return 1
		}
		return 0
	}))
}

// config is a config.json as engines write them, but for an annotation.
const config = `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["/bin/sh","-c","echo \"a\\tb\""],` +
	`"env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},"annotations":{"io.kubernetes.cri.container-type":"container"}}`

func run(bin, file string, rounds int) error {
	dir := testhost.Dir()
	empty, become, wrapper := dir+"/empty", dir+"/become", dir+"/nix-closure-runtime"
	bundle := dir + "/bundle"
	err := errors.Join(programs.Build(dir, "empty", "become"), os.Symlink(empty, become+".to"),
		programs.Install(dir, filepath.Join(bin, "nix-closure-runtime")), os.Mkdir(bundle, 0o755),
		os.WriteFile(bundle+"/config.json", []byte(config), 0o644), os.MkdirAll("/etc/nix-closure", 0o755),
		os.WriteFile("/etc/nix-closure/config.toml", fmt.Appendf(nil, "runtime = %q\n", empty), 0o644))
	if err != nil {
		return err
	}
	cases := []*interleaved.Case{
		command("a program that becomes the runtime", become),
		command("the runtime alone", empty),
	}
	for _, args := range [][]string{
		{"create", "--bundle", bundle, "web"}, {"run", "--bundle", bundle, "web"}, {"start", "web"}, {"state", "web"},
		{"exec", "--process", "p.json", "web"}, {"kill", "web", "15"}, {"delete", "--force", "web"}, {"features"},
	} {
		cases = append(cases, command("nix-closure-runtime "+args[0], wrapper, args...))
	}
	if err := interleaved.Measure(rounds, cases); err != nil {
		return err
	}
	return interleaved.Report(file, "wrapper", cases)
}

func command(name, program string, args ...string) *interleaved.Case {
	return &interleaved.Case{Name: name, Run: func() (time.Duration, error) {
		cmd := exec.Command(program, args...)
		begin := time.Now()
		err := cmd.Run()
		return time.Since(begin), err
	}}
}
