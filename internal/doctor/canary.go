// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nix-closure/nix-closure/internal/engineconfig"
)

// The canary asks for what cannot be had: it must be refused, and for that reason. Its
// program is this one, so that it needs nothing of an image.
const (
	canaryKey     = "nix-closure/roots"
	canaryRoot    = "/nix/store/canary"
	canaryReason  = `annotation nix-closure/roots: "/nix/store/canary": `
	canaryProgram = "/nix-closure-canary"
	// canaryTime is for one engine.
	canaryTime = 30 * time.Second
)

// canary judges how a canary ended; nil: it started.
func (e *exam) canary(engine, by string, err error) {
	switch {
	case err == nil:
		e.find(Finding{
			ID: "canary", Severity: Open, Engine: engine, What: "the canary started" + by,
			Consequence: withoutClosure,
			Advice:      "mend what else is found, and run it again; if nothing is, see docs/engines.md",
		})
	case strings.Contains(err.Error(), canaryReason):
		e.fact(engine, "the canary is refused"+by)
	default:
		e.unknown(engine, "the canary"+by+" failed for another reason than its closure", errors.New(oneLine(err)))
	}
}

// podmanCanary runs podman as it was called: as this user.
func (e *exam) podmanCanary(ctx context.Context, podman string, user User) {
	if (os.Geteuid() == 0) != (user.ConfigDir == "") {
		return
	}
	rootfs, err := os.MkdirTemp("", "nix-closure-canary-")
	if err != nil {
		e.unknown("podman", "the canary", err)
		return
	}
	defer func() { _ = os.RemoveAll(rootfs) }()
	before := e.logSize()
	ctx, cancel := context.WithTimeout(ctx, canaryTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, podman, "run", "--rm", "--network=none", "--annotation", canaryKey+"="+canaryRoot,
		"--volume", e.self+":"+canaryProgram+":ro", "--rootfs", rootfs, canaryProgram, "--version")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	err = cmd.Run()
	if err != nil {
		// crun before 1.9 and precreate do not say why: the log does.
		err = fmt.Errorf("%w: %s %s", err, errs.String(), e.logSince(before))
	}
	e.canary("podman", "", err)
}

func (e *exam) logSize() int64 {
	info, err := os.Stat(e.config.LogFile)
	if err != nil {
		return 0
	}
	return info.Size()
}

// logSince is what the hook wrote into its log since then, as text without JSON's quoting.
func (e *exam) logSince(size int64) string {
	f, err := os.Open(e.config.LogFile)
	if err != nil {
		return ""
	}
	defer f.Close()
	text := make([]byte, 1<<20)
	n, err := f.ReadAt(text, size)
	if n == 0 && err != nil {
		return ""
	}
	return strings.ReplaceAll(string(text[:n]), `\"`, `"`)
}

// criCanary runs a pod with one container, by the handler that is the default.
func (e *exam) criCanary(ctx context.Context, engine string, pid int, socket string, r engineconfig.Runtimes) {
	if pid == 0 {
		e.unknown(engine, "the canary", errors.New("the engine does not run"))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, canaryTime)
	defer cancel()
	err := criStart(ctx, socket, e.self)
	e.canary(engine, fmt.Sprintf(" by the default handler %q", r.Default), err)
}

func criStart(ctx context.Context, socket, program string) (Err error) {
	connection, err := dialCRI(socket)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	images, err := cri.NewImageServiceClient(connection).ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return err
	}
	if len(images.Images) == 0 {
		return errors.New("the engine has no image; pull one")
	}
	image := &cri.ImageSpec{Image: images.Images[0].Id}
	engine := cri.NewRuntimeServiceClient(connection)
	name := "nix-closure-canary-" + strings.ToLower(rand.Text()[:8])
	security := &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
	}
	pod := &cri.PodSandboxConfig{
		Metadata:    &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: "nix-closure-canary"},
		Annotations: map[string]string{canaryKey: canaryRoot},
		Linux:       &cri.LinuxPodSandboxConfig{SecurityContext: security},
	}
	sandbox, err := engine.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return err
	}
	defer func() {
		// Also after the time is over.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), canaryTime)
		defer cancel()
		_, stopErr := engine.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
		_, removeErr := engine.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
		if err := errors.Join(stopErr, removeErr); err != nil && Err != nil {
			Err = fmt.Errorf("%w; and removing the canary's pod %s: %w", Err, name, err)
		}
	}()
	created, err := engine.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: sandbox.PodSandboxId, SandboxConfig: pod,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "canary"}, Image: image,
			Command: []string{canaryProgram, "--version"},
			Mounts:  []*cri.Mount{{HostPath: program, ContainerPath: canaryProgram, Readonly: true}},
		},
	})
	if err != nil {
		return err
	}
	_, err = engine.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId})
	return err
}

// dockerCanary makes a container of any image that Docker has, and starts it.
func (e *exam) dockerCanary(ctx context.Context, d *engineconfig.Docker) {
	if d.PID == 0 {
		e.unknown("docker", "the canary", errors.New("the engine does not run"))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, canaryTime)
	defer cancel()
	e.canary("docker", "", dockerStart(ctx, d.Socket, e.self))
}

func dockerStart(ctx context.Context, socket, program string) error {
	var images []struct{ ID string }
	if err := dockerCall(ctx, socket, http.MethodGet, "/images/json", nil, &images); err != nil {
		return err
	}
	if len(images) == 0 {
		return errors.New("the engine has no image; pull one")
	}
	var created struct{ ID string }
	err := dockerCall(ctx, socket, http.MethodPost, "/containers/create", map[string]any{
		"Image": images[0].ID, "Entrypoint": []string{canaryProgram}, "Cmd": []string{"--version"},
		"HostConfig": map[string]any{
			"NetworkMode": "none", "Annotations": map[string]string{canaryKey: canaryRoot},
			"Binds": []string{program + ":" + canaryProgram + ":ro"},
		},
	}, &created)
	if err != nil {
		return err
	}
	path := "/containers/" + url.PathEscape(created.ID)
	err = dockerCall(ctx, socket, http.MethodPost, path+"/start", nil, nil)
	removeErr := dockerCall(context.WithoutCancel(ctx), socket, http.MethodDelete, path+"?force=1", nil, nil)
	if err != nil && removeErr != nil {
		return fmt.Errorf("%w; and removing it: %w", err, removeErr)
	}
	return err
}
