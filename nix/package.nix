# SPDX-License-Identifier: Apache-2.0

# nix-closure for nixpkgs. It needs a nixpkgs whose Go is as new as go.mod says.
#
# After a change of go.mod or go.sum, make nixhash writes the new vendorHash.
{
  lib,
  buildGoModule,
  installShellFiles,
  testers,
}:

let
  version = "0.1.0";
  ldflags = [
    "-s"
    "-w"
    "-X github.com/nix-closure/nix-closure/internal/version.Version=${version}"
  ];
in

buildGoModule {
  pname = "nix-closure";
  inherit version ldflags;

  # What is built and installed, so that a change of the documentation builds nothing.
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../go.mod
      ../go.sum
      ../closure
      ../cmd
      ../hook
      ../internal
      ../spec
      ../examples/podman
      ../examples/systemd/nix-closure-nri.service
      ../packaging/man
    ];
  };

  vendorHash = "sha256-7Hp/qg89ZvrontKW1IyMoHVO86OuQF6QsDoTyWpzE3w=";

  subPackages = [
    "cmd/nix-closure-hook"
    "cmd/nix-closure"
    "cmd/nix-closure-runtime"
    "cmd/nix-closure-nri"
    "cmd/nix-closure-device-plugin"
  ];

  # Static: the hook runs in containers' namespaces.
  env.CGO_ENABLED = "0";

  # The tests mount, and run real engines: make test.
  doCheck = false;

  nativeBuildInputs = [ installShellFiles ];

  # The man pages and completions are written by a nix-closure that runs where this is
  # built, which may be another architecture.
  postInstall = ''
    GOOS=$(go env GOHOSTOS) GOARCH=$(go env GOHOSTARCH) go build -tags man \
      -ldflags ${lib.escapeShellArg (toString ldflags)} -o "$TMPDIR/manual/nix-closure" ./cmd/nix-closure
    mkdir "$TMPDIR/manual/man1"
    "$TMPDIR/manual/nix-closure" man "$TMPDIR/manual/man1"
    installManPage "$TMPDIR"/manual/man1/*.1 packaging/man/*.1
    installShellCompletion --cmd nix-closure \
      --bash <("$TMPDIR/manual/nix-closure" completion bash) \
      --zsh <("$TMPDIR/manual/nix-closure" completion zsh) \
      --fish <("$TMPDIR/manual/nix-closure" completion fish)

    mkdir -p "$out/share/containers/oci/hooks.d" "$out/lib/systemd/system"
    for file in examples/podman/*.json; do
      sed "s|/usr/local/bin/|$out/bin/|" "$file" >"$out/share/containers/oci/hooks.d/$(basename "$file")"
    done
    sed "s|/usr/local/bin/|$out/bin/|" examples/systemd/nix-closure-nri.service \
      >"$out/lib/systemd/system/nix-closure-nri.service"
  '';

  passthru.tests.nixos = testers.runNixOSTest ./test.nix;

  meta = {
    description = "OCI hook that gives a container exactly its closure in /nix/store";
    homepage = "https://github.com/nix-closure/nix-closure";
    license = lib.licenses.asl20;
    platforms = [
      "x86_64-linux"
      "aarch64-linux"
    ];
    mainProgram = "nix-closure";
  };
}
