#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# Builds what the tests of engines start, in these versions, if it is not there.
#
#   build.sh OUT
set -eu

containerd=v2.4.2
runc=v1.5.2
gvisor=v0.0.0-20260905035102-160fafc42237
docker=v2.0.0-beta.24
snapshotter=v0.4.0

[ $# -eq 1 ] || { echo "usage: $0 OUT" >&2; exit 1; }
here=$(dirname "$(realpath "$0")")
mkdir -p "$1"
out=$(realpath "$1")

versions="containerd $containerd, runc $runc, gvisor $gvisor with its shim, docker $docker, nix-snapshotter $snapshotter, compose $(cksum <"$here/compose/go.mod"), kubelet $(cat "$here/kubelet/go.mod" "$here"/kubelet/manifests/*.go | cksum), deploy $(cat "$here/deploy/go.mod" "$here"/deploy/*/*.go | cksum)"
[ "$(cat "$out/versions" 2>/dev/null)" != "$versions" ] || exit 0
export GOBIN="$out" GOFLAGS=-trimpath GOTOOLCHAIN=local
# Each in a directory that is in no module.
cd /
echo "building containerd $containerd and its shim" >&2
CGO_ENABLED=0 go install -ldflags '-s -w' \
	"github.com/containerd/containerd/v2/cmd/containerd@$containerd" \
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@$containerd"
echo "building runc $runc" >&2
CGO_ENABLED=1 go install -tags seccomp "github.com/opencontainers/runc@$runc"
echo "building gVisor's runsc and its shim" >&2
# Linked statically: it enters a root that has no libraries.
CGO_ENABLED=0 go install "gvisor.dev/gvisor/runsc@$gvisor"
CGO_ENABLED=0 go install -ldflags '-s -w' "gvisor.dev/gvisor/shim@$gvisor"
mv "$out/shim" "$out/containerd-shim-runsc-v1"
echo "building Docker's daemon $docker; this takes some minutes" >&2
CGO_ENABLED=0 go install -ldflags '-s -w' "github.com/moby/moby/v2/cmd/dockerd@$docker"
echo "building nix-snapshotter $snapshotter, and the tool that makes its images" >&2
CGO_ENABLED=0 go install -ldflags '-s -w' "github.com/pdtpartners/nix-snapshotter@$snapshotter" \
	"github.com/pdtpartners/nix-snapshotter/cmd/nix2container@$snapshotter"
echo "building docker compose" >&2
(cd "$here/compose" && CGO_ENABLED=0 go build -ldflags '-s -w' -o "$out/docker-compose" github.com/docker/compose/v5/cmd)
echo "building a kubelet, and what judges manifests; this takes some minutes" >&2
(cd "$here/kubelet" && CGO_ENABLED=0 go build -ldflags '-s -w' -o "$out/" k8s.io/kubernetes/cmd/kubelet ./manifests)
echo "building what renders the chart and judges rules" >&2
(cd "$here/deploy" && CGO_ENABLED=0 go build -ldflags '-s -w' -o "$out/" ./charts ./rules)
echo "$versions" >"$out/versions"
