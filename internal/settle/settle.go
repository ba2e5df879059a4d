// SPDX-License-Identifier: Apache-2.0

// Package settle gives tests the same process for every user: under nohup, with another
// umask, limits, locale or environment, with a full /tmp. Only tests, the demo and the
// benchmark import it.
package settle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// own begins the names of the variables by which tests tell their children what to do.
const own = "NIX_CLOSURE_TEST_"

// Run settles this process, runs main, and returns its exit status. Call it from TestMain.
// It does not settle a child that a test starts: the parent is settled, and the rest is
// what the test gives the child on purpose.
func Run(main func() int) int {
	isOwn := func(variable string) bool { return strings.HasPrefix(variable, own) }
	if !slices.ContainsFunc(os.Environ(), isOwn) {
		// Go raised the limit on open files for this process, and restores it for children.
		if err := settle(limits); err != nil {
			fmt.Fprintf(os.Stderr, "settling the test: %v\n", err)
			return 1
		}
	}
	return main()
}

// Settle sets what this process inherited and tests must not depend on: the umask, limits,
// the environment, the signals that its children ignore, and a directory for temporary
// files that has room.
//
// A program that was started with SIGHUP ignored, as by nohup, continues to ignore it.
func Settle() error { return settle(append([]limit{openFiles}, limits...)) }

func settle(limits []limit) error {
	syscall.Umask(0o022)
	return errors.Join(settleSignals(), settleLimits(limits), settleEnvironment(), settleProgram())
}

// settleSignals has children handle signals in the default way: a signal that is caught
// here is not ignored there (execve(2)).
func settleSignals() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	ignored, err := ignoredSignals(string(status))
	if err == nil && len(ignored) > 0 {
		signal.Notify(make(chan os.Signal, 1), ignored...)
	}
	return err
}

// ofLibc are the signals that the C library reserves. Its posix_spawn, which make calls,
// starts programs with the first one ignored, and Go cannot catch them.
var ofLibc = []syscall.Signal{32, 33}

// ignoredSignals returns the ignored signals in the text of /proc/PID/status, without those
// of the C library.
func ignoredSignals(status string) (ignored []os.Signal, _ error) {
	for line := range strings.Lines(status) {
		digits, ok := strings.CutPrefix(line, "SigIgn:")
		if !ok {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(digits), 16, 64)
		if err != nil {
			return nil, fmt.Errorf("/proc/self/status: %w", err)
		}
		for number := range 64 {
			s := syscall.Signal(number + 1)
			if mask>>number&1 != 0 && !slices.Contains(ofLibc, s) {
				ignored = append(ignored, s)
			}
		}
		return ignored, nil
	}
	return nil, errors.New("/proc/self/status has no SigIgn")
}

// limit is the limit of one resource.
type limit struct {
	name     string
	resource int
	soft     uint64 // what tests get, if the hard limit allows it
	least    uint64 // with less, tests fail
}

var openFiles = limit{name: "open files", resource: unix.RLIMIT_NOFILE, soft: 1024, least: 1024}

var limits = []limit{
	{name: "processes", resource: unix.RLIMIT_NPROC, soft: unix.RLIM_INFINITY, least: 2048},
	{name: "the size of a file", resource: unix.RLIMIT_FSIZE, soft: unix.RLIM_INFINITY, least: 16 << 30},
	{name: "the address space", resource: unix.RLIMIT_AS, soft: unix.RLIM_INFINITY, least: 64 << 30},
	{name: "data", resource: unix.RLIMIT_DATA, soft: unix.RLIM_INFINITY, least: 8 << 30},
	{name: "the stack", resource: unix.RLIMIT_STACK, soft: 8 << 20, least: 8 << 20},
	{name: "CPU time", resource: unix.RLIMIT_CPU, soft: unix.RLIM_INFINITY, least: 24 * 3600},
	{name: "a core file", resource: unix.RLIMIT_CORE},
}

func settleLimits(limits []limit) error {
	for _, l := range limits {
		var now unix.Rlimit
		if err := unix.Getrlimit(l.resource, &now); err != nil {
			return os.NewSyscallError("getrlimit", err)
		}
		if now.Max < l.least {
			return fmt.Errorf("the hard limit on %s is %d, and tests need %d; raise it with ulimit -H",
				l.name, now.Max, l.least)
		}
		// syscall.Setrlimit, so that a new process gets this limit on open files, and not
		// the one that Go found and raised for itself.
		wanted := syscall.Rlimit{Cur: min(l.soft, now.Max), Max: now.Max}
		if err := syscall.Setrlimit(l.resource, &wanted); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	return nil
}

// directories are where programs are searched for, after the directories of the inherited
// PATH. Go's own archive is unpacked in the last one.
var directories = []string{
	"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/go/bin",
}

// kept are the variables that stay, besides those of Go and of the tests: for a module
// proxy, a C compiler, and the reader of the output. GOTMPDIR goes, because TMPDIR has
// room.
var kept = []string{
	"TERM", "CI", "CC", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
}

func isKept(name string) bool {
	isPrefix := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
	return slices.Contains(kept, name) ||
		name != "GOTMPDIR" && slices.ContainsFunc([]string{"GO", "CGO_", own}, isPrefix)
}

func settleEnvironment() error {
	set := map[string]string{
		"PATH": pathOf(os.Getenv("PATH")), "LC_ALL": "C.UTF-8", "TZ": "UTC",
		"TMPDIR": roomy("/tmp", "/var/tmp", os.TempDir()),
	}
	set["HOME"], set["USER"] = account(os.Getenv("HOME"))
	for _, variable := range os.Environ() {
		if name, value, _ := strings.Cut(variable, "="); isKept(name) && value != "" {
			set[name] = value
		}
	}
	os.Clearenv()
	for name, value := range set {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return nil
}

// pathOf adds directories to a PATH.
func pathOf(path string) string {
	all := slices.DeleteFunc(strings.Split(path, ":"), func(dir string) bool { return dir == "" })
	for _, dir := range directories {
		if !slices.Contains(all, dir) {
			all = append(all, dir)
		}
	}
	return strings.Join(all, ":")
}

// account returns the user's home directory and name. It does not return a home directory
// that belongs to another user, as sudo leaves it: Nix and podman refuse that.
func account(home string) (ownHome, name string) {
	var st unix.Stat_t
	isOwn := home != "" && unix.Stat(home, &st) == nil && int64(st.Uid) == int64(os.Geteuid())
	u, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	if err != nil {
		u = &user.User{Username: strconv.Itoa(os.Geteuid()), HomeDir: "/"}
	}
	if isOwn {
		return home, u.Username
	}
	return u.HomeDir, u.Username
}

// What tests need of the disk.
const (
	roomBytes = 2 << 30
	roomFiles = 100_000
)

// roomy returns the first of these directories that has room for tests and may have
// programs in it, or the first if none has. A short name is good for sockets.
func roomy(candidates ...string) string {
	for _, dir := range candidates {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) != nil || st.Flags&(unix.ST_NOEXEC|unix.ST_RDONLY) != 0 ||
			st.Bavail*uint64(st.Bsize) < roomBytes {
			continue
		}
		// A file system may not count its files.
		if st.Files == 0 || st.Ffree >= roomFiles {
			return dir
		}
	}
	return candidates[0]
}

// settleProgram lets every user run this program, because tests start themselves as other
// users. go test built it with the inherited umask.
func settleProgram() error {
	const path, others = "/proc/self/exe", 0o055
	info, err := os.Stat(path)
	if err != nil || info.Mode()&others == others {
		return err
	}
	if err := os.Chmod(path, info.Mode().Perm()|others); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil // another user's program
}
