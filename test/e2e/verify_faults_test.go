// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/mntns"
)

// planted is a container in which something is made wrong.
type planted struct {
	t      *testing.T
	id     string
	pid    int
	dir    string // for files of the host
	record string // the file
}

func plantable(t *testing.T, c container) planted {
	t.Helper()
	id := c.start(t)
	pid, err := strconv.Atoi(strings.TrimSpace(must(t, "podman", "inspect", "--format", "{{.State.Pid}}", id)))
	if err != nil {
		t.Fatal(err)
	}
	return planted{t: t, id: id, pid: pid, dir: t.TempDir(), record: runtimeDir + "/containers/" + id + ".json"}
}

// inside calls f in the container's mount namespace, in a thread that ends with it.
func (p planted) inside(f func() error) error {
	return mntns.OnOwnThread(func() error {
		namespace, err := mntns.Open(strconv.Itoa(p.pid))
		if err != nil {
			return err
		}
		defer namespace.Close()
		if err := mntns.Join(namespace); err != nil {
			return err
		}
		return f()
	})
}

// show mounts a path of the host in the container. What is missing there is made.
func (p planted) show(source, target string) error {
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return p.inside(func() error {
		if _, err := os.Lstat(target); errors.Is(err, fs.ErrNotExist) {
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				err = os.MkdirAll(target, 0o755)
			} else {
				err = os.WriteFile(target, nil, 0o644)
			}
			if err != nil {
				return err
			}
		}
		return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
}

// attributes changes those of a mount in the container.
func (p planted) attributes(target string, a unix.MountAttr) error {
	return p.inside(func() error { return unix.MountSetattr(unix.AT_FDCWD, target, 0, &a) })
}

func (p planted) unmount(target string) error {
	return p.inside(func() error { return unix.Unmount(target, unix.MNT_DETACH) })
}

func (p planted) tmpfs(target string) error {
	return p.inside(func() error { return unix.Mount("nix-closure", target, "tmpfs", 0, "mode=0555") })
}

// overlay mounts an overlay on the host, and shows it in the container.
func (p planted) overlay(lower string) error {
	at := p.dir + "/overlay"
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+lower+",redirect_dir=on,metacopy=on"); err != nil {
		return err
	}
	return errors.Join(p.show(at, "/tmp/shown"), unix.Unmount(at, unix.MNT_DETACH))
}

// edit changes a field of the record; nil: it is left out.
func (p planted) edit(field string, value any) error {
	text, err := os.ReadFile(p.record)
	if err != nil {
		return err
	}
	var r map[string]any
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.UseNumber()
	if err := d.Decode(&r); err != nil {
		return err
	}
	if r[field] = value; value == nil {
		delete(r, field)
	}
	if text, err = json.Marshal(r); err != nil {
		return err
	}
	return os.WriteFile(p.record, text, 0o600)
}

func (p planted) field(field string) (value any, _ error) {
	text, err := os.ReadFile(p.record)
	if err != nil {
		return nil, err
	}
	var r map[string]any
	err = json.Unmarshal(text, &r)
	return r[field], err
}

// lead has a GC root of the container lead to a store path.
func (p planted) lead(root, path string) error {
	link := gcRoots + "/" + p.id + "/" + root
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(path, link)
}

// fault is something that is made wrong, and what verify says of it.
type fault struct {
	name  string
	modes []string // nil: both
	flags []string
	plant func(p planted) error
	want  string // in what is wrong
	args  []string
}

// mountFaults are mounts in the container's namespace.
var mountFaults = []fault{
	{name: "the store", want: "shows /nix/store of the host",
		plant: func(p planted) error { return p.show(storeDir, "/tmp/shown") }},
	{name: "the store by an alias", want: "shows /nix/store of the host", plant: func(p planted) error {
		alias := p.dir + "/alias"
		if err := os.Mkdir(alias, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("/nix", alias, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return errors.Join(p.show(alias+"/store", "/tmp/shown"), unix.Unmount(alias, unix.MNT_DETACH))
	}},
	{name: "above the store", want: "shows /nix/store of the host",
		plant: func(p planted) error { return p.show("/nix", "/tmp/shown") }},
	{name: "the host's root", want: "of the host, and with it more than the closure",
		plant: func(p planted) error { return p.show("/", "/tmp/shown") }},
	{name: "an overlay of the store", want: "shows /nix/store of the host",
		plant: func(p planted) error { return p.overlay(p.dir + ":" + storeDir) }},
	{name: "an overlay of what is above", want: "shows /nix/store of the host",
		plant: func(p planted) error { return p.overlay(p.dir + ":/nix") }},
	{name: "the view's overlay, whole", modes: []string{"overlay"}, want: "shows /nix/store of the host",
		plant: func(p planted) error {
			view, err := p.field("view")
			if err != nil {
				return err
			}
			return p.overlay(fmt.Sprint(runtimeDir, "/views/", view, ":", storeDir))
		}},
	{name: "another store path", want: "neither in its closure nor named",
		plant: func(p planted) error { return p.show(store["foreign"], "/tmp/shown") }},
	{name: "a path replaced", want: "is mounted on ",
		plant: func(p planted) error { return p.show(store["tools"], store["env"]) }},
	{name: "a file replaced", want: "is mounted on ",
		plant: func(p planted) error { return p.show("/etc/hostname", store["data"]) }},
	{name: "a path hidden", want: "is mounted on ", plant: func(p planted) error { return p.tmpfs(store["env"]) }},
	{name: "a directory in a path replaced", want: "is mounted on " + "/nix/store/",
		plant: func(p planted) error { return p.show("/etc", store["env"]+"/bin") }},
	{name: "the view covered", want: "and not the view of the record",
		plant: func(p planted) error { return p.tmpfs(storeDir) },
		modes: []string{"overlay"}},
	{name: "the view covered by another tmpfs", want: "lacks ",
		plant: func(p planted) error { return p.tmpfs(storeDir) },
		modes: []string{"bind"}},
	{name: "the view covered by the store", want: "and not the view of the record",
		plant: func(p planted) error { return p.show(storeDir, storeDir) }},
	{name: "above the view covered", want: "nothing is attached to /nix/store",
		plant: func(p planted) error { return p.tmpfs("/nix") }},
	{name: "the view unmounted", want: "nothing is attached to /nix/store",
		plant: func(p planted) error { return p.unmount(storeDir) }},
	{name: "a path unmounted", modes: []string{"bind"}, want: "is not the host's: type and mode",
		plant: func(p planted) error { return p.unmount(store["env"]) }},
	{name: "the view writable", want: "is not ro",
		plant: func(p planted) error {
			return p.attributes(storeDir,
				unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
		}},
	{name: "a path writable", modes: []string{"bind"}, want: "is not ro",
		plant: func(p planted) error {
			return p.attributes(store["env"], unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
		}},
	{name: "the view with set-user-ID", want: "is not nosuid",
		plant: func(p planted) error {
			return p.attributes(storeDir,
				unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOSUID})
		}},
	{name: "the view with devices", want: "is not nodev",
		plant: func(p planted) error {
			return p.attributes(storeDir,
				unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NODEV})
		}},
	{name: "the view shared", want: "propagates",
		plant: func(p planted) error { return p.attributes(storeDir, unix.MountAttr{Propagation: unix.MS_SHARED}) }},
	{name: "a name added", modes: []string{"bind"}, want: "shows 1 names that are not in the closure",
		plant: func(p planted) error {
			err := p.attributes(storeDir, unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
			if err == nil {
				err = p.inside(func() error { return os.Mkdir(storeDir+"/added", 0o755) })
			}
			return errors.Join(err, p.attributes(storeDir, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
		}},
	{name: "the daemon's socket", want: "daemon-socket/socket of the host", plant: func(p planted) error {
		path := "/nix/var/nix/daemon-socket/socket"
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		socket, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		p.t.Cleanup(func() { _ = socket.Close() })
		return p.show(path, "/tmp/socket")
	}},
	{name: "the state directory", want: "shows /nix/var/nix of the host",
		plant: func(p planted) error { return p.show("/nix/var/nix", "/tmp/shown") }},
	{name: "Nix's database", want: "shows /nix/var/nix/db/db.sqlite of the host",
		plant: func(p planted) error { return p.show("/nix/var/nix/db/db.sqlite", "/tmp/database") }},
	{name: "the runtime directory", want: "shows " + runtimeDir + " of the host",
		plant: func(p planted) error { return p.show(runtimeDir, "/tmp/shown") }},
	{name: "records", want: "shows " + runtimeDir + "/containers of the host",
		plant: func(p planted) error { return p.show(runtimeDir+"/containers", "/tmp/shown") }},
	{name: "the host's processes", want: "shows the processes of the host",
		plant: func(p planted) error { return p.show("/proc", "/tmp/shown") }},
	{name: "no registration", flags: []string{registered}, want: "the registration was unmounted",
		plant: func(p planted) error { return p.unmount("/nix/var/nix") }},
	{name: "another registration", flags: []string{registered}, want: "and not the registration",
		plant: func(p planted) error { return p.show("/nix/var/nix", "/nix/var/nix") }},
	{name: "a path changed in memory", modes: []string{"overlay"}, flags: []string{writable},
		want: "is not the host's: ",
		plant: func(p planted) error {
			return p.inside(func() error { return os.WriteFile(store["env"]+"/added", nil, 0o644) })
		}},
	{name: "a path removed in memory", modes: []string{"overlay"}, flags: []string{writable},
		want:  "lacks 1 of the closure's paths",
		plant: func(p planted) error { return p.inside(func() error { return os.RemoveAll(store["data"]) }) }},
	{name: "a content changed in memory", modes: []string{"overlay"}, flags: []string{writable},
		args: []string{"--contents"},
		want: "is not what Nix registered", plant: func(p planted) error {
			return p.inside(func() error {
				file, err := firstFile(store["coreutils"])
				if err != nil {
					return err
				}
				return os.WriteFile(file, []byte("changed"), 0o755)
			})
		}},
}

// firstFile is a regular file in a store path, not at its top.
func firstFile(path string) (found string, _ error) {
	err := filepath.WalkDir(path, func(at string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Dir(at) != path {
			found = at
			return fs.SkipAll
		}
		return err
	})
	if found == "" && err == nil {
		err = fmt.Errorf("%s has no file", path)
	}
	return found, err
}

// memoryFaults are in what the host remembers.
var memoryFaults = []fault{
	{name: "no GC roots", want: "its GC roots are gone",
		plant: func(p planted) error { return os.RemoveAll(gcRoots + "/" + p.id) }},
	{name: "a GC root gone", want: "no GC root in ", plant: func(p planted) error {
		return os.Remove(gcRoots + "/" + p.id + "/" + filepath.Base(store["env"]))
	}},
	{name: "a GC root that leads elsewhere", want: "leads elsewhere",
		plant: func(p planted) error { return p.lead(filepath.Base(store["env"]), store["foreign"]) }},
	{name: "a GC root that leads nowhere", want: "leads elsewhere",
		plant: func(p planted) error { return p.lead(filepath.Base(store["env"]), "/nowhere") }},
	{name: "a GC root of another closure", want: "not in the closure",
		plant: func(p planted) error { return p.lead(filepath.Base(store["foreign"]), store["foreign"]) }},
	{name: "a GC root of a part", want: "do not keep all of the closure", plant: func(p planted) error {
		err := os.Remove(gcRoots + "/" + p.id + "/" + filepath.Base(store["env"]))
		return errors.Join(err, p.lead(filepath.Base(store["data"]), store["data"]))
	}},
	{name: "the digest of nothing", want: "the record has the digest ",
		plant: func(p planted) error { return p.edit("digest", strings.Repeat("0", 64)) }},
	{name: "another process", want: "runc says", plant: func(p planted) error { return p.edit("pid", 1) }},
	{name: "another start of the process", want: "which is another",
		plant: func(p planted) error { return p.edit("pidStart", 1) }},
	{name: "other roots", want: "it lacks the root", plant: func(p planted) error {
		return p.edit("roots", []string{filepath.Base(store["foreign"])})
	}},
	{name: "more roots", want: "which neither an annotation nor a mount", plant: func(p planted) error {
		return p.edit("roots", []string{filepath.Base(store["env"]), filepath.Base(store["foreign"])})
	}},
	{name: "another mode", want: "and not the view of the record", plant: func(p planted) error {
		mode, err := p.field("mode")
		other := map[any]string{"overlay": "bind", "bind": "overlay"}[mode]
		return errors.Join(err, p.edit("mode", other))
	}},
	{name: "no mode", want: "which no view has", plant: func(p planted) error { return p.edit("mode", "auto") }},
	{name: "writable", want: "writable true, not false",
		plant: func(p planted) error { return p.edit("writable", true) }},
	{name: "registered", want: "registration true, not false", plant: func(p planted) error {
		return p.edit("registration", "none")
	}},
	{name: "another view", modes: []string{"overlay"}, want: "the record names the view",
		plant: func(p planted) error { return p.edit("view", "other") }},
	{name: "other GC roots", want: "the record says that the GC roots are in",
		plant: func(p planted) error { return p.edit("gcRoots", gcRoots+"/other") }},
	{name: "not attached", want: "it is being started",
		plant: func(p planted) error { return p.edit("attached", false) }},
	{name: "no JSON", want: "damaged record",
		plant: func(p planted) error { return os.WriteFile(p.record, []byte("{"), 0o600) }},
	{name: "no record", want: "the hook was not called", plant: func(p planted) error { return os.Remove(p.record) }},
	{name: "other annotations", want: "it lacks the root", plant: func(p planted) error {
		return p.changeConfig(store["env"], store["foreign"])
	}},
	{name: "an annotation that is not understood", want: "its annotations are not understood",
		plant: func(p planted) error { return p.changeConfig(`"nix-closure/mode"`, `"nix-closure/mood"`) }},
}

// changeConfig changes a text in the container's config.json.
func (p planted) changeConfig(from, to string) error {
	bundle, err := p.field("bundle")
	if err != nil {
		return err
	}
	file := fmt.Sprint(bundle, "/config.json")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(strings.ReplaceAll(string(text), from, to)), 0o644)
}

// Verify finds each of these, and nothing before it is there.
func TestVerifyFaults(t *testing.T) {
	for i, f := range append(mountFaults, memoryFaults...) {
		wanted := f.modes
		if wanted == nil {
			wanted = modes
		}
		for _, mode := range wanted {
			t.Run(f.name+"/"+mode, func(t *testing.T) {
				c := container{runtime: runtimes[i%2], mode: mode, root: "env", flags: f.flags}
				if strings.Contains(f.want, "runc") || strings.Contains(f.name, "annotation") {
					c.runtime = "runc" // crun keeps a copy of config.json
				}
				p := plantable(t, c)
				found, status := verify(t, append(f.args, p.id)...)
				checkOK(t, found, status, p.id)
				record, err := os.ReadFile(p.record)
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := os.WriteFile(p.record, record, 0o600); err != nil {
						t.Error(err)
					}
				}()
				if err := f.plant(p); err != nil {
					t.Fatal(err)
				}
				found, status = verify(t, append(f.args, p.id)...)
				v := found.of(t, p.id)
				state, exit := "wrong", 1
				if f.name == "not attached" {
					state, exit = "unknown", 4
				}
				if v.State != state || status != exit || !strings.Contains(v.says(), f.want) {
					t.Errorf("status %d, %s\n%s\nwant %q", status, v.State, v.says(), f.want)
				}
				for _, w := range v.Wrong {
					if w.Do == "" || strings.Contains(w.What, "\n") {
						t.Errorf("%+v", w)
					}
				}
			})
		}
	}
}

// The record of one container in place of another's.
func TestVerifyOtherRecord(t *testing.T) {
	for _, runtime := range runtimes {
		t.Run(runtime, func(t *testing.T) {
			one := plantable(t, container{runtime: runtime, root: "env"})
			other := plantable(t, container{runtime: runtime, root: "env"})
			own, err := os.ReadFile(one.record)
			if err != nil {
				t.Fatal(err)
			}
			its, err := os.ReadFile(other.record)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(one.record, its, 0o600); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := os.WriteFile(one.record, own, 0o600); err != nil {
					t.Error(err)
				}
			}()
			found, status := verify(t)
			// The ID has two entries: the record's container, and the one that runs without one.
			says := ""
			for _, v := range found.Containers {
				if v.ID == one.id {
					says += v.says() + "\n"
				}
			}
			for _, want := range []string{"are of one process", "the record says that the GC roots are in",
				"there is no record"} {
				if status != 1 || !strings.Contains(says, want) {
					t.Errorf("status %d\n%s\nwant %q", status, says, want)
				}
			}
		})
	}
}

// A container that was started while the hook was away is found, and so is what it sees.
func TestVerifyWithoutHook(t *testing.T) {
	for _, runtime := range runtimes {
		t.Run(runtime, func(t *testing.T) {
			c := container{runtime: runtime, root: "env", hooks: t.TempDir(),
				flags: []string{"--volume=/nix/store:/nix/store"}}
			id := c.start(t)
			found, status := verify(t)
			v := found.of(t, id)
			if status != 1 || v.State != "wrong" || !strings.Contains(v.says(), "the hook was not called") ||
				!strings.Contains(v.says(), "shows /nix/store of the host") {
				t.Errorf("status %d, %s\n%s", status, v.State, v.says())
			}
		})
	}
}

// The host's store itself was changed: the container sees that too.
func TestVerifyChangedStore(t *testing.T) {
	t.Cleanup(func() { rebuildStore(t) })
	eachRuntimeAndMode(t, func(t *testing.T, runtime, mode string) {
		id := container{runtime: runtime, mode: mode, root: "env"}.start(t)
		file := store["data"]
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		change := func(text []byte) {
			if err := errors.Join(os.WriteFile(file, text, 0),
				os.Chtimes(file, st.ModTime(), st.ModTime())); err != nil {
				t.Fatal(err)
			}
		}
		changed := append([]byte("x"), before[1:]...)
		change(changed)
		defer change(before)
		if found, status := verify(t, id); status != 0 {
			t.Errorf("without contents: status %d\n%s", status, found.of(t, id).says())
		}
		found, status := verify(t, "--contents", id)
		if says := found.of(t, id).says(); status != 1 || !strings.Contains(says, "on the host neither") {
			t.Errorf("status %d\n%s", status, says)
		}
	})
}

// A file system whose server does not answer keeps verify from nothing: what cannot be
// judged is unknown, and one above the store is wrong.
func TestVerifyHungVolume(t *testing.T) {
	for target, want := range map[string]struct{ state, says string }{
		"/tmp/hung": {"unknown", "what a FUSE file system shows is what its program likes"},
		"/nix":      {"wrong", "is on a fuse file system"},
	} {
		t.Run(target, func(t *testing.T) {
			p := plantable(t, container{runtime: "runc", root: "env"})
			stop := p.dir + "/stop"
			v := newHungVolume(t, stop, false)
			if err := errors.Join(p.show(v.dir, target), os.WriteFile(stop, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			defer v.end()
			quick(t, "verify", func() {
				found, _ := verify(t, p.id)
				if got := found.of(t, p.id); got.State != want.state || !strings.Contains(got.says(), want.says) {
					t.Errorf("%s\n%s\nwant %q", got.State, got.says(), want.says)
				}
			})
		})
	}
}
