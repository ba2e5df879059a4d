// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/mntns"
	"github.com/nix-closure/nix-closure/test/testhost"
)

// seedStore is a /nix that hosts of the topology test are made of.
type seedStore struct {
	dir   string
	token string            // the secret
	paths map[string]string // store paths by name
}

// secretFile is what a file with the secret is called.
func (s *seedStore) secretFile() string { return "secret-" + s.token }

// newSeedStore builds testdata/topology.nix in a /nix of its own, and puts the secret
// in the places that no container may see.
func newSeedStore(dir, prober, token string) (*seedStore, error) {
	s := &seedStore{dir: dir, token: token, paths: map[string]string{}}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	expression, err := filepath.Abs("testdata/topology.nix")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/bin/sh", "-ec", `mount --bind "$1" /nix
		nix-build --no-out-link --quiet --argstr prober "$2" "$3"`, "sh", dir, prober, expression)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("building the store of the topologies: %w\n%s", err, errs.String())
	}
	for path := range strings.FieldsSeq(string(out)) {
		_, name, _ := strings.Cut(filepath.Base(path), "-")
		s.paths[name] = path
	}
	if len(s.paths) != 5 {
		return nil, fmt.Errorf("the store of the topologies has %q", s.paths)
	}
	return s, s.hide()
}

// hide puts the secret where it must not be seen. The database has it in a field
// that says nothing about references.
func (s *seedStore) hide() error {
	inStore := func(name string) string { return filepath.Join(s.dir, "store", filepath.Base(s.paths[name])) }
	state := filepath.Join(s.dir, "var/nix")
	links := filepath.Join(s.dir, "store/.links")
	for _, dir := range []string{state + "/profiles", state + "/daemon-socket", links} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{inStore("foreign"), inStore("later"), state, state + "/db", state + "/profiles"} {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, s.secretFile()), []byte(s.token+"\n"), 0o644); err != nil {
			return err
		}
	}
	if err := os.Link(filepath.Join(inStore("foreign"), s.secretFile()), links+"/0link"); err != nil {
		return err
	}
	if err := syscall.Mknod(state+"/daemon-socket/socket", syscall.S_IFSOCK|0o666, 0); err != nil {
		return err
	}
	const update = `import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("update ValidPaths set deriver = ? where path = ?", sys.argv[2:])
db.commit()
db.execute("pragma wal_checkpoint(truncate)")`
	text, err := exec.Command("/usr/bin/python3", "-c", update, state+"/db/db.sqlite",
		"/nix/store/"+s.token+".drv", s.paths["foreign"]).CombinedOutput()
	if err != nil {
		return fmt.Errorf("writing the secret to the database: %w\n%s", err, text)
	}
	return nil
}

// layout is how a host has its /nix.
type layout struct {
	name string
	// Commands from before the host's root becomes /, when it is $R, and from after
	// that. What is mounted before has names in its options that lead nowhere, as on
	// a host that an initrd started.
	before, after string
	depth         int      // of overlays, of the store
	depthNix      int      // and of /nix
	backing       []string // directories and files that have the store in them
	disk          string   // where the disk with the store is mounted
	image         string   // the file that this disk is of, if the host has it
}

// Parts of layouts.
const (
	// All but one store path in a lower layer, and that one in an upper.
	split = `mkdir -p $R/layers/upper $R/layers/work
		cp -a $SEED $R/nix
		mv $R/nix/store $R/layers/lower
		mkdir $R/nix/store
		mv $R/layers/lower/*-later $R/layers/upper/`
	live = `mkdir $R/iso $R/media
		cp -a $SEED $R/nix
		rm -rf $R/nix/store/*-later
		disk $R/nix/store $R/iso/store
		rm -rf $R/nix/store
		mkdir $R/nix/store $R/nix/.ro-store $R/nix/.rw-store
		mount -o loop,ro $R/iso/store $R/nix/.ro-store
		mount -t tmpfs tmpfs $R/nix/.rw-store
		mkdir $R/nix/.rw-store/store $R/nix/.rw-store/work
		cp -a $SEED/store/*-later $R/nix/.rw-store/store/
		writable $R/nix/.ro-store $R/nix/.rw-store/store $R/nix/.rw-store/work $R/nix/store`
)

var layouts = []layout{
	{name: "plain", before: "cp -a $SEED $R/nix", disk: "/"},
	{
		name: "bind", disk: "/",
		before:  "mkdir -p $R/srv/other $R/nix; cp -a $SEED $R/srv/other/nix",
		after:   "mount --bind /srv/other/nix /nix",
		backing: []string{"/srv/other/nix", "/srv/other/nix/store", "/srv/other", "/srv", "/srv/other/nix/var/nix"},
	},
	{
		name: "other disk", disk: "/nix", image: "/disks/nix",
		before:  "mkdir $R/nix $R/disks; disk $SEED $R/disks/nix",
		after:   "mount -o loop /disks/nix /nix",
		backing: []string{"/disks/nix", "/disks"},
	},
	{
		name: "store on other disk", disk: storeDir, image: "/disks/store",
		before: "cp -a $SEED $R/nix; mkdir $R/disks; disk $SEED/store $R/disks/store; find $R/nix/store -mindepth 1 " +
			"-delete",
		after:   "mount -o loop /disks/store /nix/store",
		backing: []string{"/disks/store", "/disks"},
	},
	{
		name: "store bound read-only", disk: "/",
		before: "cp -a $SEED $R/nix",
		after:  "mount --bind /nix/store /nix/store; mount -o remount,bind,ro /nix/store",
	},
	{
		name: "overlay", disk: "/", depth: 1,
		before:  split,
		after:   "writable /layers/lower /layers/upper /layers/work /nix/store",
		backing: []string{"/layers/lower", "/layers/upper", "/layers"},
	},
	{
		name: "overlay of lower layers", disk: "/", depth: 1,
		before: split,
		after: `cd /layers; mount -t overlay overlay -o lowerdir=upper:lower /nix/store
			cd /; mv /layers /below`,
		backing: []string{"/below/lower", "/below/upper", "/below"},
	},
	{
		name: "all of /nix an overlay", disk: "/", depth: 1, depthNix: 1,
		before:  "mkdir -p $R/layers/upper $R/layers/work $R/nix; cp -a $SEED $R/layers/lower",
		after:   "writable /layers/lower /layers/upper /layers/work /nix",
		backing: []string{"/layers/lower", "/layers/lower/store", "/layers", "/layers/lower/var/nix"},
	},
	{
		name: "overlay of overlay", disk: "/", depth: 2,
		before: split + "; mkdir $R/layers/merged $R/layers/upper2 $R/layers/work2",
		after: `writable /layers/lower /layers/upper /layers/work /layers/merged
			writable /layers/merged /layers/upper2 /layers/work2 /nix/store`,
		backing: []string{"/layers/lower", "/layers/upper", "/layers/merged", "/layers"},
	},
	{
		name: "live system", disk: "/nix/.ro-store", image: "/iso/store", depth: 1,
		before:  live,
		backing: []string{"/nix/.ro-store", "/nix/.rw-store/store", "/nix/.rw-store", "/iso/store", "/iso"},
	},
	{
		name: "live system, layers moved", disk: "/media/a", image: "/iso/store", depth: 1,
		before: live,
		after: `mkdir /media/a /media/b
			mount --move /nix/.ro-store /media/a
			mount --move /nix/.rw-store /media/b; umount -l /media/b`,
		backing: []string{"/media/a", "/media", "/iso/store"},
	},
}

// simulated is a host of the topology test: a mount namespace with a root directory
// of its own, on a disk of its own.
type simulated struct {
	layout layout
	seed   *seedStore
	device string // the block device with the store
	image  string // the disk
	holder *exec.Cmd
	quit   io.Closer
	ns     int
	seen   int64 // how much of the log was read
}

// script makes a host in the directory $1. What is mounted there, it alone has.
func (l layout) script() string {
	return `set -e
disk() { truncate -s 24M $2; mkfs.ext4 -q -d $1 $2; }
writable() { mount -t overlay overlay -o lowerdir=$1,upperdir=$2,workdir=$3 $4; }
R=$1/root
mkdir $R
truncate -s 128M $1/disk
mkfs.ext4 -q -N 20000 $1/disk
mount -o loop $1/disk $R
cd $R
mkdir -p usr etc proc sys dev run tmp var/log var/lib var/tmp root w old images/plain/bin ."$BIN"
for d in bin lib lib32 lib64 libx32 sbin; do
	if [ -L /$d ]; then cp -a /$d $d; elif [ -d /$d ]; then mkdir $d; mount --bind /$d $d; fi
done
mount --bind "$BIN" ."$BIN"
for d in usr etc proc sys dev; do mount --rbind /$d $d; done
mount -t tmpfs tmpfs run
cp $PROBER prober
` + l.before + `
pivot_root . old
umount -l /old
rmdir /old
mkdir -m 0700 /run/nix-closure
echo $TOKEN >/run/nix-closure/secret-$TOKEN
cp -a /images/plain /run/image
cp /prober /run/image/bin/
` + l.after + `
cd /
echo "ready $(findmnt -no SOURCE -M ` + l.disk + `)"
read -r line || : # the end
`
}

// newHost makes a host in a directory.
func newHost(dir string, l layout, seed *seedStore, prober string) (_ *simulated, Err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	h := &simulated{layout: l, seed: seed, image: dir + "/disk"}
	h.holder = exec.Command("/bin/sh", "-c", l.script(), "sh", dir)
	h.holder.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C",
		"BIN=" + *bin, "PROBER=" + prober, "SEED=" + seed.dir, "TOKEN=" + seed.token,
	}
	h.holder.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var errs strings.Builder
	h.holder.Stderr = &errs
	stdin, err := h.holder.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := h.holder.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.holder.Start(); err != nil {
		return nil, err
	}
	h.quit = stdin
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	device, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if !ok {
		err := h.holder.Wait()
		return nil, fmt.Errorf("making a host, %s: %w\n%s", l.name, err, errs.String())
	}
	h.device = device
	h.ns, err = unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", h.holder.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return h, err
}

// close ends the host, and with it all that is mounted there.
func (h *simulated) close() error {
	return errors.Join(h.quit.Close(), h.holder.Wait(), unix.Close(h.ns), os.RemoveAll(filepath.Dir(h.image)))
}

// inHost calls f in the host's mount namespace. The calling goroutine must keep its
// thread, and share its directories with no other (inOwnThread).
func (h *simulated) inHost(f func() error) (Err error) {
	home, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(home)
	if err := unix.Setns(h.ns, unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("setns", err)
	}
	defer func() { Err = errors.Join(Err, os.NewSyscallError("setns", unix.Setns(home, unix.CLONE_NEWNS))) }()
	return f()
}

// inOwnThread calls f on a thread that may change its namespaces, and ends with f.
func inOwnThread(f func() error) error {
	return mntns.OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		return f()
	})
}

// left is what containers left on the host that ends with none of them.
func (h *simulated) left() ([]string, error) {
	var all []string
	for _, dir := range []string{runtimeDir + "/containers", gcRoots} {
		names, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, n := range names {
			all = append(all, filepath.Join(dir, n.Name()))
		}
	}
	return all, nil
}

// layoutNames says which layouts there are.
func layoutNames() string {
	var names []string
	for _, l := range layouts {
		names = append(names, l.name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// topologyDir is where the topology test has its files.
func topologyDir() string { return filepath.Join(testhost.Dir(), "topologies") }
