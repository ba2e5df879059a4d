// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hungVolume is a FUSE file system of an empty directory, which from a moment on does
// not answer.
type hungVolume struct {
	dir  string
	fd   int
	stop string // a file: from when it is there, no request is read any more
	read bool   // but those that are not answered are read
	over atomic.Bool
	done chan struct{}
}

// The requests of FUSE (linux/fuse.h).
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetattr     = 3
	fuseInit        = 26
	fuseOpendir     = 27
	fuseReaddir     = 28
	fuseReleasedir  = 29
	fuseInterrupt   = 36
	fuseBatchForget = 42
)

func newHungVolume(t *testing.T, stop string, read bool) *hungVolume {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	v := &hungVolume{dir: t.TempDir(), fd: fd, stop: stop, read: read, done: make(chan struct{})}
	go v.serve()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("hung", v.dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v.end()
		if err := unix.Unmount(v.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return v
}

// end aborts the connection, as the end of a server does.
func (v *hungVolume) end() {
	if v.over.CompareAndSwap(false, true) {
		<-v.done
		unix.Close(v.fd)
	}
}

func (v *hungVolume) serve() {
	defer close(v.done)
	request := make([]byte, 1<<17)
	for !v.over.Load() {
		_, running := os.Lstat(v.stop)
		if running == nil && !v.read {
			time.Sleep(time.Millisecond)
			continue
		}
		n, err := unix.Read(v.fd, request)
		if err != nil { // EAGAIN; EPERM: not mounted yet
			time.Sleep(time.Millisecond)
			continue
		}
		if running != nil {
			v.answer(request[:n])
		}
	}
}

func (v *hungVolume) answer(request []byte) {
	var b bytes.Buffer
	write := func(values ...any) {
		for _, value := range values {
			_ = binary.Write(&b, binary.NativeEndian, value)
		}
	}
	failed := int32(0)
	switch binary.NativeEndian.Uint32(request[4:]) {
	case fuseForget, fuseBatchForget, fuseInterrupt:
		return
	case fuseLookup:
		failed = -int32(unix.ENOENT)
	case fuseInit:
		write(uint32(7), uint32(31), uint32(0), uint32(0), uint16(1), uint16(1), uint32(4096), uint32(1), [9]uint32{})
	case fuseGetattr: // for ever
		write(uint64(1<<30), uint64(0), uint64(1), [5]uint64{}, [3]uint32{}, uint32(unix.S_IFDIR|0o755), uint32(2),
			[4]uint32{}, uint32(0))
	case fuseOpendir:
		write(uint64(0), uint32(0), uint32(0))
	case fuseReaddir, fuseReleasedir: // it is empty
	default:
		failed = -int32(unix.ENOSYS)
	}
	var header bytes.Buffer
	for _, value := range []any{uint32(16 + b.Len()), failed, binary.NativeEndian.Uint64(request[8:])} {
		_ = binary.Write(&header, binary.NativeEndian, value)
	}
	_, _ = unix.Write(v.fd, append(header.Bytes(), b.Bytes()...))
}

// impatientHook builds the hook with a short deadline.
func impatientHook(t *testing.T, deadline string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, "env", "CGO_ENABLED=0", "go", "build", "-C", "../..",
		"-ldflags", "-X github.com/nix-closure/nix-closure/hook.deadlineText="+deadline, "-o", dir+"/nix-closure-hook",
		"./cmd/nix-closure-hook")
	from, err := os.Open(filepath.Join(*bin, "nix-closure"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(dir+"/nix-closure", os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return dir + "/nix-closure-hook"
}

// quick fails where something takes longer than a start that nothing is in the way
// of, on a machine with much else to do.
func quick(t *testing.T, what string, f func()) {
	t.Helper()
	began := time.Now()
	f()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("%s took %s", what, took)
	}
}

// A container whose volume does not answer ends at the deadline, with a message and
// nothing left; and it is in nobody's way until then.
func TestHungVolume(t *testing.T) {
	hook := impatientHook(t, "6s")
	// Without this it is refused by its type, and nobody asks its program.
	writeConfig(t, "fuse = true\n")
	one := buildTrees(t, []string{"hung"}, "--out-link", t.TempDir()+"/hung")[0]
	annotations := with(roots(one.root), "nix-closure/mode", "overlay", "nix-closure/registration", "true")
	for i, runtime := range runtimes {
		read := i > 0 // each of one runtime: this takes long
		t.Run(fmt.Sprintf("%s, reads %v", runtime, read), func(t *testing.T) {
			before := len(readLog(t))
			live := hold(t, "beside-the-hung", runtimes[1-i], one, annotations)
			record := runtimeDir + "/containers/hung.json"
			volume := newHungVolume(t, record, read)
			b := newBundle(t, annotations, "echo it runs", "poststop")
			// At /nix itself it would be refused by its type too.
			if err := os.Symlink("/volume", b.dir+"/rootfs/nix"); err != nil {
				t.Fatal(err)
			}
			b.addMount(object{"destination": "/volume", "type": "bind", "source": volume.dir,
				"options": []string{"bind"}})
			b.config["hooks"].(object)["createRuntime"] = []object{
				{"path": hook, "args": []string{"nix-closure-hook", "createRuntime"}, "env": []string{"GOMAXPROCS=1"}},
			}
			var out bytes.Buffer
			cmd := b.command(t, runtime, "hung")
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			for range 500 {
				if text, err := os.ReadFile(record); err == nil &&
					strings.Contains(string(text), `"digest":"`+digestOf(t, live.id)) {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			began := time.Now()
			for _, other := range runtimes {
				quick(t, "a start beside it", func() {
					c := newBundle(t, annotations, one.check("true"), "createRuntime", "poststop")
					if _, out, stderr, err := c.run(t, other); err != nil || out != "whole\n" {
						t.Errorf("%v %q %s", err, out, stderr)
					}
				})
			}
			quick(t, "gc", func() { sweep(t, "--unused-for", "0s") })
			quick(t, "an end beside it", func() { live.letGo(t) })
			quick(t, "Nix's garbage collector", func() { must(t, "nix-store", "--gc") })
			if _, err := os.Lstat(record); err != nil || time.Since(began) > 5*time.Second {
				t.Errorf("it does not hang, or not long enough: this test shows nothing: %v", err)
			}

			want := "nix-closure: container hung: attaching the view: no answer before the deadline, "
			logged := func() bool {
				for _, l := range readLog(t)[before:] {
					if l.Level == "error" && l.Container == "hung" && strings.HasPrefix(l.Msg, want) {
						return true
					}
				}
				return false
			}
			for range 1000 {
				if logged() {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if !logged() {
				t.Errorf("not in the log: %s", lastLog(t))
			}
			if read {
				// The kernel lets the thread go with the server only. What it
				// made is gone already.
				nothingLeft(t)
				volume.end()
			}
			select {
			case err := <-ended:
				var exit *exec.ExitError
				if !errors.As(err, &exit) || strings.Contains(out.String(), "it runs") {
					t.Errorf("it started: %v %s", err, &out)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it does not end")
			}
			if runtime == "runc" && !strings.Contains(out.String(), want) {
				t.Errorf("%s", &out)
			}
			nothingLeft(t)
			if marks, err := filepath.Glob(runtimeDir + "/*/*@hung"); err != nil || len(marks) > 0 {
				t.Errorf("left %q", marks)
			}
		})
	}
}

// digestOf is the digest of the closure of a container that runs.
func digestOf(t *testing.T, id string) string {
	t.Helper()
	text, err := os.ReadFile(runtimeDir + "/containers/" + id + ".json")
	if err != nil {
		t.Fatal(err)
	}
	_, digest, _ := strings.Cut(string(text), `"digest":"`)
	digest, _, _ = strings.Cut(digest, `"`)
	return digest
}

// A hook that is stopped keeps its own container from starting, and no other, and goes
// on when it is let.
func TestStoppedHook(t *testing.T) {
	one := buildTrees(t, []string{"stopped"}, "--out-link", t.TempDir()+"/stopped")[0]
	annotations := with(roots(one.root), "nix-closure/mode", "overlay")
	containers := runtimeDir + "/containers"
	for i, c := range []struct {
		before, path, made string
		wait               time.Duration // of others
		stopped            time.Duration
	}{
		// It has the lock of its ID.
		{before: "renameat", path: containers + "/stopped.json", made: containers + "/.stopped.json",
			stopped: 5 * time.Second},
		// It makes the layer that the others need too.
		{before: "mkdirat", path: filepath.Base(one.root), made: runtimeDir + "/views/*.new/store",
			wait: 5 * time.Second, stopped: 10 * time.Second},
	} {
		removeAll(t, runtimeDir+"/views")
		runtime := runtimes[i]
		b := newBundle(t, annotations, one.check("true"), "poststop")
		inject := fmt.Sprintf("inject=%s:delay_enter=%d:when=1", c.before, c.stopped.Microseconds())
		b.config["hooks"].(object)["createRuntime"] = []object{{
			"path": "/usr/bin/strace", "env": []string{"GOMAXPROCS=1"},
			"args": []string{"strace", "-f", "-qq", "-o", "/dev/null", "-e", inject, "-P", c.path,
				filepath.Join(*bin, "nix-closure-hook"), "createRuntime"},
		}}
		var out bytes.Buffer
		cmd := b.command(t, runtime, "stopped")
		cmd.Stdout, cmd.Stderr = &out, &out
		began := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		found := false
		for try := 0; try < 500 && !found; try++ {
			time.Sleep(10 * time.Millisecond)
			match, _ := filepath.Glob(c.made)
			found = len(match) > 0
		}
		if time.Sleep(100 * time.Millisecond); !found {
			t.Errorf("%s: it was not stopped: this test shows nothing", c.before)
		}
		for _, other := range runtimes {
			began := time.Now()
			beside := newBundle(t, annotations, one.check("true"), "createRuntime", "poststop")
			if _, out, stderr, err := beside.run(t, other); err != nil || out != "whole\n" {
				t.Errorf("%s: %v %q %s", c.before, err, out, stderr)
			}
			if took := time.Since(began); took > c.wait+2*time.Second {
				t.Errorf("%s: a start beside it took %s", c.before, took)
			}
		}
		quick(t, "gc", func() { sweep(t, "--unused-for", "0s") })
		if time.Since(began) > c.stopped {
			t.Errorf("%s: it went on meanwhile: this test shows nothing", c.before)
		}
		if err := cmd.Wait(); err != nil || out.String() != "whole\n" {
			t.Errorf("%s: when it goes on: %v %s", c.before, err, &out)
		}
		nothingLeft(t)
		if left, err := filepath.Glob(runtimeDir + "/views/*.new"); err != nil || len(left) > 0 {
			t.Errorf("%s: left %q", c.before, left)
		}
	}
}

// A volume that hangs before anything was made for the container: the hook ends as
// well.
func TestHungSource(t *testing.T) {
	hook := impatientHook(t, "1s")
	stop := t.TempDir() + "/stop"
	volume := newHungVolume(t, stop, false)
	if _, err := os.Lstat(volume.dir + "/volume"); !errors.Is(err, os.ErrNotExist) { // it has begun
		t.Fatal(err)
	}
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBundle(t, roots(store["tools"]), "true")
	b.addMount(object{"destination": "/mnt", "type": "bind", "source": volume.dir + "/volume",
		"options": []string{"bind"}})
	_ = b.command(t, "runc", "hung-source") // writes config.json
	var stderr bytes.Buffer
	cmd := exec.Command(hook, "createRuntime")
	cmd.Stdin = strings.NewReader(state("hung-source", os.Getpid(), b.dir, roots(store["tools"])))
	cmd.Stderr = &stderr
	began := time.Now()
	var exit *exec.ExitError
	err := cmd.Run()
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || exit.Sys().(syscall.WaitStatus).Signaled() {
		t.Errorf("%v", err)
	}
	want := "nix-closure: container hung-source: looking at the container's mounts: no answer before the deadline, "
	if !strings.HasPrefix(stderr.String(), want) || strings.Count(stderr.String(), "\n") != 1 {
		t.Errorf("%q, want %q", &stderr, want)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	nothingLeft(t)
}
