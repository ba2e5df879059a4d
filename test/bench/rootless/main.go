// SPDX-License-Identifier: Apache-2.0

// Command rootless measures `podman run --rm` of an ordinary user, beside the same with the
// store bound whole and no hooks.
//
//	go run ./bench/rootless -bin DIR -csv FILE
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
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nix-closure/nix-closure/test/bench/interleaved"
	"github.com/nix-closure/nix-closure/test/stores/synthetic"
	"github.com/nix-closure/nix-closure/test/testhost"
)

// paths are those of the container's closure.
const paths = 100

func main() {
	bin := flag.String("bin", "", "directory of nix-closure-hook and nix-closure")
	file := flag.String("csv", "", "file for the measurements")
	rounds := flag.Int("rounds", 25, "timed rounds")
	flag.Parse()
	os.Exit(testhost.Run(func() int {
		if err := run(*bin, *file, *rounds); err != nil {
			fmt.Fprintln(os.Stderr, "rootless:", err)
			return 1
		}
		return 0
	}))
}

func run(bin, file string, rounds int) error {
	store, err := synthetic.Make(1000, []int{paths})
	if err != nil {
		return err
	}
	daemon := exec.Command("nix-daemon")
	if err := daemon.Start(); err != nil {
		return err
	}
	defer func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	}()
	u, err := newUser(bin)
	if err != nil {
		return err
	}
	whole := []string{"-v", "/nix/store:/nix/store:ro"}
	closure := []string{"--annotation", "nix-closure/roots=" + store.Root(paths)}
	var cases []*interleaved.Case
	for _, runtime := range []string{"crun", "runc"} {
		for _, c := range []struct {
			name  string
			flags []string
		}{{"the store bound whole", whole}, {"nix-closure", closure}} {
			cases = append(cases, &interleaved.Case{
				Name: fmt.Sprintf("%s: %s", runtime, c.name),
				Run:  func() (time.Duration, error) { return u.podman(runtime, c.flags) },
			})
		}
	}
	if err := interleaved.Measure(rounds, cases); err != nil {
		return err
	}
	return errors.Join(interleaved.Report(file+".crun", cases[:2]), interleaved.Report(file+".runc", cases[2:]))
}

// user is an ordinary user of the machine.
type user struct {
	id          uint32
	home, hooks string
	env         []string
}

func newUser(bin string) (*user, error) {
	dir := testhost.Dir()
	u := &user{home: dir + "/home", hooks: dir + "/hooks.d"}
	const name = "bench"
	add := exec.Command("useradd", "--no-create-home", "--home-dir", u.home, name)
	if text, err := add.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("useradd: %w: %s", err, text)
	}
	text, err := exec.Command("id", "-u", name).Output()
	if err != nil {
		return nil, err
	}
	id, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, err
	}
	u.id = uint32(id)
	login := fmt.Sprintf("/run/user/%d", id)
	u.env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + u.home, "USER=" + name, "XDG_RUNTIME_DIR=" + login}
	// The programs are where every user can run them.
	programs, root := dir+"/programs", u.home+"/root"
	err = errors.Join(os.Chmod(dir, 0o711), os.MkdirAll("/run/user", 0o755), os.Mkdir(login, 0o700),
		os.MkdirAll(root+"/nix/store", 0o755),
		os.Mkdir(programs, 0o755), os.Mkdir(u.hooks, 0o755), os.Mkdir(root+"/proc", 0o755),
		os.Mkdir(root+"/dev", 0o755),
		os.Mkdir(root+"/sys", 0o755), os.Mkdir(root+"/etc", 0o755), os.Mkdir(root+"/run", 0o755),
		os.Mkdir(root+"/tmp", 0o755))
	if err != nil {
		return nil, err
	}
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", root+"/true", "./bench/programs/empty")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%v: %w: %s", build, err, text)
	}
	for _, p := range []string{"nix-closure-hook", "nix-closure"} {
		text, err := os.ReadFile(filepath.Join(bin, p))
		if err == nil {
			err = os.WriteFile(programs+"/"+p, text, 0o755)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, stage := range []string{"createRuntime", "poststop"} {
		text := fmt.Sprintf(`{"version":"1.0.0","hook":{"path":%q,"args":["nix-closure-hook","--engine","podman",%q],`+
			`"env":["LC_ALL=C"]},"when":{"annotations":{"^nix-closure/":".*"}},"stages":[%q]}`,
			programs+"/nix-closure-hook", stage, stage)
		if err := os.WriteFile(u.hooks+"/"+stage+".json", []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return u, exec.Command("chown", "--recursive", fmt.Sprintf("%d:%d", id, id), u.home, login).Run()
}

// podman runs a container to its removal.
func (u *user) podman(runtime string, flags []string) (time.Duration, error) {
	args := []string{"--runtime", runtime, "--hooks-dir", u.hooks, "run", "--rm", "--network=none"}
	args = append(append(args, flags...), "--rootfs", u.home+"/root", "/true")
	cmd := exec.Command("podman", args...)
	cmd.Dir, cmd.Env = u.home, u.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.id, Gid: u.id}}
	begin := time.Now()
	text, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%v: %w: %s", cmd, err, text)
	}
	return time.Since(begin), err
}
