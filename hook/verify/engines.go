// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// engines is what engines say of the containers that run.
type engines struct {
	names    map[string]string // by ID
	running  []found
	troubles []error
}

// engineTimeout bounds each question.
const engineTimeout = 10 * time.Second

// askEngines asks podman and Docker. The bundles of containerd's containers are where
// every root can read them.
func askEngines(ctx context.Context, userDir string) engines {
	e := engines{names: map[string]string{}}
	for _, ask := range []func(context.Context, string) error{e.askPodman, e.askDocker} {
		ctx, cancel := context.WithTimeout(ctx, engineTimeout)
		if err := ask(ctx, userDir); err != nil {
			e.troubles = append(e.troubles, err)
		}
		cancel()
	}
	return e
}

// podmans are where podman is. This program looks into no PATH: under sudo or a timer that
// may be anything.
var podmans = []string{"/usr/bin/podman", "/usr/local/bin/podman", "/run/current-system/sw/bin/podman"}

// askPodman asks podman, if this user has used it since the host was started: its first
// call makes directories.
func (e *engines) askPodman(ctx context.Context, userDir string) error {
	isThere := func(path string) bool { _, err := os.Stat(path); return err == nil }
	state := "/run/libpod"
	if userDir != "" {
		state = userDir + "/libpod/tmp"
	}
	i := slices.IndexFunc(podmans, isThere)
	if i < 0 || !isThere(state) {
		return nil
	}
	var list []struct {
		ID    string `json:"Id"`
		Names []string
		Pid   int
	}
	if err := podman(ctx, podmans[i], &list, "ps", "--format", "json"); err != nil {
		return err
	}
	var ids []string
	for _, c := range list {
		if len(c.Names) > 0 {
			e.names[c.ID] = c.Names[0]
		}
		ids = append(ids, c.ID)
	}
	if len(ids) == 0 {
		return nil
	}
	var details []struct {
		ID            string `json:"Id"`
		OCIConfigPath string
		State         struct{ Pid int }
	}
	if err := podman(ctx, podmans[i], &details, append([]string{"container", "inspect"}, ids...)...); err != nil {
		return err
	}
	for _, d := range details {
		if pid := started(d.State.Pid, 0); pid > 0 {
			bundle := strings.TrimSuffix(d.OCIConfigPath, "/config.json")
			e.running = append(e.running, found{d.ID, Running{
				Pid: pid, Bundle: bundle, Config: d.OCIConfigPath, From: "podman",
			}})
		}
	}
	return nil
}

func podman(ctx context.Context, program string, to any, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	// What has ended meanwhile is missing, and podman fails; the others are there.
	err := cmd.Run()
	if decoded := json.Unmarshal(out.Bytes(), to); decoded != nil {
		return fmt.Errorf("asking podman: %w", errors.Join(err, decoded, errors.New(strings.TrimSpace(said.String()))))
	}
	return nil
}

// dockerSocket is Docker's. Podman's speaks the same language, and is asked otherwise.
const dockerSocket = "/run/docker.sock"

// mostAnswer bounds an answer, in bytes.
const mostAnswer = 16 << 20

// askDocker asks Docker's daemon for names. Its containers' bundles are containerd's.
//
// It does without net/http: the hook calls this program to resolve a closure, and that
// would start slower.
func (e *engines) askDocker(ctx context.Context, _ string) error {
	if _, err := os.Stat(dockerSocket); err != nil {
		return nil //nolint:nilerr // there is no Docker, or it is not for this user
	}
	answer, err := get(ctx, dockerSocket, "/containers/json")
	var list []struct {
		ID    string `json:"Id"`
		Names []string
	}
	if err == nil {
		err = json.Unmarshal(answer, &list)
	}
	if err != nil {
		return fmt.Errorf("asking Docker for the names of containers: %w", err)
	}
	for _, c := range list {
		if len(c.Names) > 0 {
			e.names[c.ID] = strings.TrimPrefix(c.Names[0], "/")
		}
	}
	return nil
}

// get asks a server on a socket by HTTP/1.0, in which an answer is not in parts and ends
// with the connection.
func get(ctx context.Context, socket, path string) ([]byte, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", path); err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(io.LimitReader(c, mostAnswer))
	if err != nil {
		return nil, err
	}
	head, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	status, _, _ := bytes.Cut(head, []byte("\r\n"))
	if fields := strings.Fields(string(status)); len(fields) < 2 || fields[1] != "200" {
		return nil, fmt.Errorf("%s: answers %q", socket, status)
	}
	return body, nil
}

// nameOf is the name that Kubernetes has for a container, as its annotations say it.
func nameOf(c Container) string {
	file := ""
	switch {
	case c.Running != nil:
		file = c.Running.Config
	case c.Record != nil:
		file = c.Record.Bundle + "/config.json"
	default:
		return ""
	}
	annotations, err := annotationsIn(file)
	if err != nil {
		return ""
	}
	for _, keys := range [][2]string{
		{"io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.container-name"},
		{"io.kubernetes.pod.name", "io.kubernetes.container.name"},
	} {
		if name := annotations[keys[1]]; name != "" {
			return strings.TrimPrefix(annotations[keys[0]]+"/"+name, "/")
		}
	}
	return ""
}
