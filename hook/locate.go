// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/commandline"
	"github.com/nix-closure/nix-closure/internal/nopoll"
	"github.com/nix-closure/nix-closure/internal/proc"
	"github.com/nix-closure/nix-closure/spec"
)

// lostBundle is the bundle that crun (seen with 1.8.1, and in the source of 1.29.1)
// reports for a container with a user namespace and devices. crun makes the devices in
// another mount namespace. On its way back it loses its working directory, which it
// reports as the bundle.
const lostBundle = "/"

// located is the place of the container's config.json.
type located struct {
	bundle string // absolute
	config string // the file
	// stated is the bundle that the runtime reports; empty: the same as bundle.
	stated string
}

// locate finds the container's bundle and its config.json. It takes them from the state,
// unless the runtime has lost them. caller is the PID of the process that calls the hook:
// the runtime.
//
// locate trusts nothing that a container could have written. The engine wrote the
// runtime's command line, and only this user can change the directory of the runtime's
// copy of config.json. locate verifies that they belong to the container of the state:
// the command line has its ID, its process belongs to the same call of the runtime, and
// config.json has its annotations.
func locate(call Call, state spec.State, caller int) (located, error) {
	stated := located{bundle: state.Bundle, config: filepath.Join(state.Bundle, "config.json")}
	if state.Bundle != lostBundle {
		return stated, nil
	}
	found, err := locateByCaller(call, state, strconv.Itoa(caller))
	if err != nil {
		return stated, fmt.Errorf("the runtime says that the bundle is %s, as crun does for a container with "+
			"a user namespace and devices, and the hook cannot find it another way: %w; "+
			"call the runtime with --bundle and an absolute path, or use another version of it", lostBundle, err)
	}
	return found, nil
}

func locateByCaller(hook Call, state spec.State, caller string) (located, error) {
	line, call, err := readCommandLine(caller)
	if err != nil {
		return located{}, err
	}
	switch {
	case call.Doubt != nil:
		return located{}, fmt.Errorf("its command line is not understood: %w", call.Doubt)
	case !call.Makes || call.ID != state.ID:
		return located{}, fmt.Errorf("the command line of process %s, which called the hook, makes another container "+
			"or none", caller)
	case !filepath.IsAbs(call.Bundle):
		return located{}, fmt.Errorf("--bundle on its command line is %q, not an absolute path", call.Bundle)
	}
	// Nothing of the container runs yet, so its first process is a copy of the runtime's.
	its, err := os.ReadFile(proc.Dir + "/" + strconv.Itoa(state.Pid) + "/cmdline")
	if err != nil {
		return located{}, err
	}
	if !bytes.Equal(its, line) {
		return located{}, fmt.Errorf("process %d of the OCI state is not one of the runtime that called the hook",
			state.Pid)
	}
	root, err := crunRoot(call, caller)
	if err != nil {
		return located{}, err
	}
	found := located{
		bundle: filepath.Clean(call.Bundle), config: root + "/" + state.ID + "/config.json", stated: state.Bundle,
	}
	if err := ownedByUs(filepath.Dir(found.config)); err != nil {
		return located{}, err
	}
	return found, ownConfig(found.config, hook, state)
}

// readCommandLine returns a runtime's command line, raw and parsed.
func readCommandLine(process string) ([]byte, commandline.Arguments, error) {
	line, err := nopoll.ReadFile(proc.Dir+"/"+process+"/cmdline", 0)
	if err != nil {
		return nil, commandline.Arguments{}, err
	}
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	return line, commandline.Parse(args[1:]), nil
}

// readEnvironment returns the environment of a process.
func readEnvironment(process string) ([]string, error) {
	text, err := nopoll.ReadFile(proc.Dir+"/"+process+"/environ", 0)
	return strings.Split(string(text), "\x00"), err
}

// crunRoot returns the directory in which crun keeps its containers.
func crunRoot(call commandline.Arguments, caller string) (string, error) {
	if filepath.IsAbs(call.Root) {
		return filepath.Clean(call.Root), nil
	}
	if call.Root != "" {
		return "", fmt.Errorf("--root on its command line is %q, not an absolute path", call.Root)
	}
	// This is the runtime's own environment, not an image's.
	environment, err := readEnvironment(caller)
	if err != nil {
		return "", err
	}
	for _, variable := range environment {
		if dir, ok := strings.CutPrefix(variable, "XDG_RUNTIME_DIR="); ok && dir != "" {
			return filepath.Clean(dir) + "/crun", nil
		}
	}
	return "/run/crun", nil
}

// ownedByUs refuses a directory that anybody except this user can change.
func ownedByUs(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s can be changed by users other than user %d, who runs the hook", dir, os.Geteuid())
	}
	return nil
}

// ownConfig refuses a file that does not belong to this user or to the container.
func ownConfig(path string, call Call, state spec.State) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the runtime keeps no copy of config.json in %s", filepath.Dir(path))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || !ours(st) || st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is not a regular file that user %d alone can change", path, os.Geteuid())
	}
	text, err := spec.ReadLimited(f, spec.MaxConfig)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	annotations, err := spec.ParseConfigAnnotations(text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// The state's annotations already include those of the call.
	if annotations, err = call.add(annotations); err != nil || !maps.Equal(annotations, state.Annotations) {
		return fmt.Errorf("%s has other annotations than the OCI state", path)
	}
	return nil
}
