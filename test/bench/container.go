// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// errStopped is given instead of a container after a signal.
var errStopped = errors.New("stopped")

// containerRuntime runs containers, one at a time.
type containerRuntime struct {
	name, path string
	// root is the runtime's state directory.
	root string
	// stderr collects what the running container's runtime has to say. A file,
	// not a pipe: nothing reads while the clock runs.
	stderr *os.File
	// stop says that there should be no more containers.
	stop  <-chan os.Signal
	count int
}

func findRuntime(name, dir string, stop <-chan os.Signal) (*containerRuntime, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	stderr, err := os.Create(filepath.Join(dir, name+".stderr"))
	if err != nil {
		return nil, err
	}
	return &containerRuntime{
		name:   name,
		path:   path,
		root:   filepath.Join("/run", name),
		stderr: stderr,
		stop:   stop,
	}, nil
}

// time runs a container from its creation to its removal and says how long that
// took.
func (r *containerRuntime) time(bundle string) (time.Duration, error) {
	return r.run(bundle, nil)
}

// output runs a container and gives what it printed.
func (r *containerRuntime) output(bundle string) (string, error) {
	var stdout bytes.Buffer
	_, err := r.run(bundle, &stdout)
	return stdout.String(), err
}

func (r *containerRuntime) run(bundle string, stdout io.Writer) (time.Duration, error) {
	// Between two containers, so that none is cut short.
	select {
	case signal := <-r.stop:
		return 0, fmt.Errorf("%w: %v", errStopped, signal)
	default:
	}
	r.count++
	id := fmt.Sprintf("%s-%d", r.name, r.count)
	cmd := exec.Command(r.path, "--root", r.root, "run", "--bundle", bundle, id)
	cmd.Stdout, cmd.Stderr = stdout, r.stderr
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		err = fmt.Errorf("%s run: %w: %s", r.name, err, r.complaint())
		// What is left is not known; usually nothing is.
		_ = exec.Command(r.path, "--root", r.root, "delete", "--force", id).Run()
	}
	return took, err
}

// complaint takes what was written to stderr.
func (r *containerRuntime) complaint() string {
	text, err := os.ReadFile(r.stderr.Name())
	if err != nil {
		return err.Error()
	}
	if _, err := r.stderr.Seek(0, io.SeekStart); err != nil {
		return err.Error()
	}
	if err := r.stderr.Truncate(0); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}
