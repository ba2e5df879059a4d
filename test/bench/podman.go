// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nix-closure/nix-closure/test/speed"
	"github.com/nix-closure/nix-closure/test/testhost"
)

// Whose podman it is.
const (
	podmanRoot     = "podman run --rm, root"
	podmanRootless = "podman run --rm, rootless"
	volumes        = "podman --volume for each path"
	podmanImage    = "localhost/bench"
)

// caller is a user who calls podman.
type caller struct {
	what  string
	sizes []int
	env   []string
	id    uint32
	home  string
}

func (c *caller) command(args ...string) *exec.Cmd {
	cmd := exec.Command("podman", args...)
	if c.id != 0 {
		cmd.Dir, cmd.Env = c.home, c.env
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.id, Gid: c.id}}
	}
	return cmd
}

// measurePodman times podman run --rm, as root and as an ordinary user.
func measurePodman(b *bench, budget time.Duration) error {
	if _, missing := exec.LookPath("podman"); missing != nil {
		b.absent(&subject{row: speed.Row{Group: "podman", What: "all", Variant: "podman"}}, "missing: "+missing.Error())
		return b.measure(nil, 0)
	}
	hooks, err := b.installHooks()
	if err != nil {
		return err
	}
	endDaemon, err := nixDaemon()
	if err != nil {
		return err
	}
	defer endDaemon()
	root := &caller{what: podmanRoot, sizes: []int{100, 1000}}
	var all []*subject
	for _, make := range []func() (*caller, error){
		func() (*caller, error) { return root, b.loadImage(root) },
		func() (*caller, error) {
			user, err := b.user()
			if err != nil {
				return nil, err
			}
			return user, b.loadImage(user)
		},
	} {
		c, err := make()
		if err != nil {
			b.failed(speed.Row{Group: "podman", What: "all", Variant: "all"}, err)
			continue
		}
		for _, runtime := range b.runtimes {
			all = append(all, b.podmanSubjects(c, runtime, hooks)...)
		}
	}
	if err := b.measure(all, budget); err != nil || b.perfIsMissing("podman") {
		return err
	}
	return b.profilePodman(all)
}

// profilePodman looks at which programs an ordinary user's starts have.
func (b *bench) profilePodman(all []*subject) error {
	var errs []error
	for _, x := range all {
		if x.row.What == podmanRootless && (x.row.Variant == whole || x.row.Variant == bindWarm) {
			row := x.row
			row.What += ", " + row.Variant
			errs = append(errs, b.programTimes(row, podmanStarts, x.run))
		}
	}
	return errors.Join(errs...)
}

// installHooks puts podman's hook files where every user can use them.
func (b *bench) installHooks() (hooks string, _ error) {
	hooks = filepath.Join(testhost.Dir(), "hooks.d")
	if err := errors.Join(os.Chmod(testhost.Dir(), 0o711), os.MkdirAll(hooks, 0o755)); err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(b.host.built, "hooks.d", "*.json"))
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("%s/hooks.d has no hook files: call make: %w", b.host.built, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		moved := strings.ReplaceAll(string(text), b.host.built+"/", b.host.bin+"/")
		if err := os.WriteFile(filepath.Join(hooks, filepath.Base(file)), []byte(moved), 0o644); err != nil {
			return "", err
		}
	}
	return hooks, nil
}

// user makes an ordinary user.
func (b *bench) user() (*caller, error) {
	// The host's users are in this machine too.
	name := fmt.Sprintf("bench%d", os.Getpid())
	home := filepath.Join(testhost.Dir(), "home", name)
	if _, err := output("useradd", "--no-create-home", "--home-dir", home, name); err != nil {
		return nil, err
	}
	text, err := output("id", "-u", name)
	if err != nil {
		return nil, err
	}
	id, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
	if err != nil {
		return nil, err
	}
	login := fmt.Sprintf("/run/user/%d", id)
	if err := errors.Join(os.MkdirAll(login, 0o700), os.Chmod("/run/user", 0o755),
		os.Chown(login, int(id), int(id)), os.MkdirAll(home, 0o700), os.Chmod(filepath.Dir(home), 0o755),
		os.Chown(home, int(id), int(id))); err != nil {
		return nil, err
	}
	return &caller{what: podmanRootless, sizes: []int{100}, id: uint32(id), home: home,
		env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "USER=" + name,
			"XDG_RUNTIME_DIR=" + login}}, nil
}

// nixDaemon starts Nix's daemon, which makes the GC roots of ordinary users.
func nixDaemon() (end func(), _ error) {
	const socket = "/nix/var/nix/daemon-socket/socket"
	daemon := exec.Command("nix-daemon")
	if err := daemon.Start(); err != nil {
		return nil, err
	}
	end = func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
		_ = os.Remove(socket)
	}
	for range 100 {
		if _, err := os.Stat(socket); err == nil {
			return end, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	end()
	return nil, errors.New("nix-daemon makes no socket")
}

// loadImage gives a user's podman an ordinary image.
func (b *bench) loadImage(c *caller) error {
	b.progress.show("importing the image")
	tar, err := exec.Command("tar", "-C", b.host.image, "-c", ".").Output()
	if err != nil {
		return err
	}
	cmd := c.command("import", "--quiet", "-", podmanImage)
	cmd.Stdin = strings.NewReader(string(tar))
	_, err = timeCommand(cmd)
	return err
}

func (b *bench) podmanSubjects(c *caller, runtime, hooks string) []*subject {
	// Only what has the store bound whole has no hooks.
	run := func(program string, flags []string) *exec.Cmd {
		return c.command(slices.Concat([]string{"--runtime", runtime}, flags,
			[]string{podmanImage, "/bin/" + program})...)
	}
	plain := []string{"run", "--rm"}
	hooked := []string{"--hooks-dir", hooks, "run", "--rm"}
	allOfStore := []string{"--volume", storeDir + ":" + storeDir + ":ro"}
	timed := func(flags []string) func() (float64, error) {
		return func() (float64, error) {
			if err := b.stopped(); err != nil {
				return 0, err
			}
			return timeCommand(run("true", flags))
		}
	}
	row := func(variant string, paths int) speed.Row {
		return speed.Row{Group: "podman", What: c.what, Variant: variant, Paths: paths, Runtime: runtime, Unit: "ms"}
	}
	ground := &subject{row: row(whole, 0), run: timed(slices.Concat(plain, allOfStore))}
	all := []*subject{ground, {row: row(unannotated, 0), run: timed(slices.Concat(hooked, allOfStore)),
		beside: ground.run}}
	all[1].row.Of = whole
	for _, n := range c.sizes {
		annotations := func(mode string) []string {
			return slices.Concat(hooked, []string{"--annotation", "nix-closure/roots=" + b.host.store.Root(n),
				"--annotation", "nix-closure/mode=" + mode})
		}
		each := slices.Clone(plain)
		for _, p := range b.host.store.Closure(n) {
			each = append(each, "--volume", p+":"+p+":ro")
		}
		ways := map[string][]string{bindWarm: annotations("bind"), volumes: each}
		names := []string{bindWarm, volumes}
		if c.id == 0 {
			ways[overlayWarm] = annotations("overlay")
			names = append([]string{overlayWarm}, names...)
		}
		for _, name := range names {
			x := &subject{row: row(name, n), run: timed(ways[name]), beside: ground.run}
			x.row.Of = whole
			b.progress.show("checking %s", x.row.Name())
			cmd := run("count", ways[name])
			var stderr limited
			cmd.Stderr = &stderr
			seen, err := cmd.Output()
			if err == nil {
				err = rightCount(string(seen), n, n)
			}
			switch {
			case err == nil:
				all = append(all, x)
			case name == volumes:
				b.absent(x, fmt.Sprintf("fails: %v: %s", err, stderr))
			default:
				b.failed(x.row, fmt.Errorf("%w: %s", err, stderr))
			}
		}
	}
	return all
}

// stopped returns an error after a signal.
func (b *bench) stopped() error {
	select {
	case signal := <-b.stop:
		b.stop <- signal // for all that ask later
		return fmt.Errorf("%w: %v", errStopped, signal)
	default:
		return nil
	}
}
