// SPDX-License-Identifier: Apache-2.0

// Demo shows the main job: an ordinary image under podman, with the closure that
// its annotation names and nothing else of the host's store. It is what `make
// demo` runs, in a machine of its own.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/nix-closure/nix-closure/test/testhost"
)

func main() {
	bin := flag.String("bin", "../bin", "the directory with the programs and hooks.d")
	flag.Parse()
	os.Exit(testhost.Run(func() int {
		if err := demo(*bin); err != nil {
			fmt.Fprintf(os.Stderr, "demo: %v\n", err)
			return 1
		}
		return 0
	}))
}

func demo(bin string) error {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	say("A small Nix store, built by Nix in a private mount namespace")
	began := time.Now()
	out := filepath.Join(testhost.Dir(), "store")
	if _, err := run("stores/real/build.sh", out); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(out, "store.json"))
	if err != nil {
		return err
	}
	var store map[string]string
	if err := json.Unmarshal(text, &store); err != nil {
		return err
	}
	fmt.Printf("  built in %.1f s\n", time.Since(began).Seconds())

	say("An ordinary image: no /nix, no libc, no shell")
	image := filepath.Join(testhost.Dir(), "image")
	if err := os.MkdirAll(filepath.Join(image, "etc"), 0o755); err != nil {
		return err
	}
	tar := filepath.Join(testhost.Dir(), "image.tar")
	if _, err := run("tar", "-C", image, "-cf", tar, "."); err != nil {
		return err
	}
	if _, err := run("podman", "import", "--quiet", tar, "localhost/bare"); err != nil {
		return err
	}

	root := store["env"]
	podman := func(command ...string) (string, error) {
		args := []string{"--runtime", "runc", "--hooks-dir", filepath.Join(bin, "hooks.d"),
			"run", "--rm", "--annotation", "nix-closure/roots=" + root, "localhost/bare"}
		return run("podman", append(args, command...)...)
	}
	say("podman run --annotation nix-closure/roots=" + root + " localhost/bare ls /nix/store")
	seen, err := podman(root+"/bin/ls", "/nix/store")
	if err != nil {
		return err
	}
	onHost, err := run("ls", "/nix/store")
	if err != nil {
		return err
	}
	beside(strings.Fields(onHost), strings.Fields(seen))

	say("A program of the closure runs in the bare image")
	printed, err := podman(root+"/bin/python3", "-B", "-c",
		`import json,ssl,sqlite3,sys; print("  Python", sys.version.split()[0], "with", ssl.OPENSSL_VERSION, "and `+
			`SQLite", sqlite3.sqlite_version)`)
	if err != nil {
		return err
	}
	fmt.Print(printed)

	say("A path of the host's store that is not in the closure, by its full name")
	secret := store["foreign"] + "/secret"
	content, err := os.ReadFile(secret)
	if err != nil {
		return err
	}
	fmt.Printf("  host:      %s: %s\n", filepath.Base(store["foreign"])+"/secret", strings.TrimSpace(string(content)))
	if _, err = podman(root+"/bin/cat", secret); err == nil {
		return fmt.Errorf("%s could be read in the container", secret)
	}
	fmt.Printf("  container: %s\n", lastLine(err))

	say("A container that asks for a path that does not exist does not start")
	root = "/nix/store/00000000000000000000000000000000-typing-mistake"
	if _, err = podman("/bin/true"); err == nil {
		return fmt.Errorf("it started")
	}
	fmt.Printf("  podman: %s\n", lastLine(err))
	return nil
}

// say prints a heading, in bold on a terminal.
func say(what string) {
	if st, err := os.Stdout.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
		what = "\033[1m" + what + "\033[0m"
	}
	fmt.Printf("\n%s\n", what)
}

// beside prints two sorted lists of store paths beside each other.
func beside(host, container []string) {
	in := map[string]bool{}
	for _, c := range container {
		in[c] = true
	}
	const most = 12
	fmt.Printf("  %-46s %s\n", fmt.Sprintf("host: %d names", len(host)),
		fmt.Sprintf("container: %d names", len(container)))
	for i, h := range host {
		if i == most {
			fmt.Printf("  … and %d more\n", len(host)-most)
			break
		}
		right := "–"
		if in[h] {
			right = short(h)
		}
		fmt.Printf("  %-46s %s\n", short(h), right)
	}
}

// short cuts the hash of a store path down.
func short(name string) string {
	if hash, rest, ok := strings.Cut(name, "-"); ok && len(hash) == 32 {
		name = hash[:8] + "…-" + rest
	}
	if len(name) > 46 {
		name = name[:44] + "…"
	}
	return name
}

func run(program string, args ...string) (string, error) {
	var errs strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", program, err, errs.String())
	}
	return string(out), err
}

func lastLine(err error) string {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return lines[len(lines)-1]
}
