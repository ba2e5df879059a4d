// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"fmt"
	"strings"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/spec"
)

var store = closure.Store{Dir: "/nix/store", StateDir: "/nix/var/nix"}

const (
	hello = "/nix/store/63l345l7dgcfz789w1y93j1540czafqh-hello-2.12"
	bash  = "/nix/store/sl141d1g77wvhr050ah87lcyz2czdxa3-bash-5.2"
)

func ExampleParseAnnotations() {
	request, err := spec.ParseAnnotations(store, spec.Podman, "", map[string]string{
		"nix-closure/roots":   hello + ":" + bash + "/bin/bash", // below a store path: that store path
		"nix-closure/listing": "false",
		"org.example/other":   "is ignored",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, root := range request.Roots {
		fmt.Println(root)
	}
	fmt.Println("listing:", request.Listing)
	// Output:
	// 63l345l7dgcfz789w1y93j1540czafqh-hello-2.12
	// sl141d1g77wvhr050ah87lcyz2czdxa3-bash-5.2
	// listing: false
}

// A typing mistake is an error: it must not weaken the isolation.
func ExampleParseAnnotations_unknownKey() {
	_, err := spec.ParseAnnotations(store, spec.Podman, "", map[string]string{"nix-closure/root": hello})
	fmt.Println(err)
	// Output:
	// annotation nix-closure/root: unknown; the keys are roots, closure-info, mode, registration, listing, writable
}

// In a pod, the key for one container wins over the key for the pod.
func ExampleParseAnnotations_pod() {
	annotations := map[string]string{
		"nix-closure/roots":     hello,
		"web.nix-closure/roots": bash,
		// containerd's CRI sets these on every container of a pod.
		"io.kubernetes.cri.container-type":    "container",
		"io.kubernetes.cri.container-name":    "web",
		"io.kubernetes.cri.sandbox-namespace": "team-a",
	}
	request, err := spec.ParseAnnotations(store, spec.Containerd, "0123", annotations)
	fmt.Println(request.Roots, request.Namespace, err)

	// podman sets none of them, so an image or a user did.
	_, err = spec.ParseAnnotations(store, spec.Podman, "0123", annotations)
	fmt.Println(strings.Split(err.Error(), ":")[0])
	// Output:
	// [sl141d1g77wvhr050ah87lcyz2czdxa3-bash-5.2] team-a <nil>
	// annotation io.kubernetes.cri.container-name
}

func ExampleAnnotated() {
	fmt.Println(spec.Annotated(map[string]string{"org.example/a": "b"}))
	fmt.Println(spec.Annotated(map[string]string{"nix-closure/no-such-key": ""}))
	// Output:
	// false
	// true
}

func ExampleParseState() {
	state, err := spec.ParseState([]byte(`{
		"ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 4422, "bundle": "/run/c1",
		"annotations": {"nix-closure/roots": "` + hello + `"}
	}`))
	fmt.Println(state.ID, state.Pid, state.Bundle, spec.Annotated(state.Annotations), err)
	// Output:
	// c1 4422 /run/c1 true <nil>
}

func ExampleParseMounts() {
	mounts, err := spec.ParseMounts([]byte("" +
		"21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n" +
		"35 21 0:40 / /run/white\\040space rw - tmpfs tmpfs rw,size=1024k\n"))
	fmt.Println(len(mounts), mounts.Inside("/run", "35"), err)

	// A line that is not understood may be the mount that shows the store.
	_, err = spec.ParseMounts([]byte("21 1 8:1 / /\n"))
	fmt.Println(err)
	// Output:
	// 2 true <nil>
	// a line of mountinfo is not understood: "21 1 8:1 / /\n"
}

func ExampleRewrite() {
	config := []byte(`{"ociVersion":"1.2.0","mounts":[{"destination":"/proc","type":"proc"},` +
		`{"destination":"/nix/store","source":"/nix/store","type":"bind"}],"x-unknown":{"kept":true}}`)
	rewritten, err := spec.Rewrite(config, []int{1})
	fmt.Printf("%s%v\n", rewritten, err)
	// Output:
	// {"mounts":[{"destination":"/proc","type":"proc"}],"ociVersion":"1.2.0","x-unknown":{"kept":true}}
	// <nil>
}

func ExampleParseEngine() {
	engine, err := spec.ParseEngine("cri-o")
	fmt.Println(engine, err)
	_, err = spec.ParseEngine("kubelet")
	fmt.Println(err)
	// Output:
	// cri-o <nil>
	// engine "kubelet": not one of podman, docker, containerd, cri-o
}
