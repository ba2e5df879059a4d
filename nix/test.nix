# SPDX-License-Identifier: Apache-2.0

# A NixOS machine in a virtual one: nix flake check, on a machine with nixpkgs and KVM. The
# tests of this repository have neither. They only parse and evaluate this file.
{ pkgs, ... }:

let
  image = pkgs.dockerTools.buildImage {
    name = "bare";
    tag = "latest";
    copyToRoot = pkgs.runCommand "empty" { } "mkdir -p $out/tmp";
  };
in

{
  name = "nix-closure";

  nodes.machine = {
    imports = [ ./nixos.nix ];
    virtualisation.podman.enable = true;
    virtualisation.nix-closure = {
      enable = true;
      podman.enable = true;
      canary.enable = true;
      cdi.closures.hello.roots = [ pkgs.hello ];
    };
    virtualisation.additionalPaths = [
      image
      pkgs.coreutils
    ];
    virtualisation.diskSize = 4096;
  };

  testScript = ''
    machine.wait_for_unit("multi-user.target")
    machine.succeed("podman load --input ${image}")
    run = "podman run --rm --network=none "

    with subtest("a device gives its closure"):
        machine.succeed(run + "--device nix-closure/closure=hello bare ${pkgs.hello}/bin/hello")

    with subtest("an annotation gives its closure, and no more"):
        seen = machine.succeed(
            run + "--annotation nix-closure/roots=${pkgs.coreutils} bare ${pkgs.coreutils}/bin/ls /nix/store"
        )
        want = machine.succeed("nix-store --query --requisites ${pkgs.coreutils} | xargs -n1 basename")
        assert sorted(seen.split()) == sorted(want.split()), seen

    with subtest("the canary is refused"):
        machine.succeed("systemctl start nix-closure-canary.service")
        machine.fail(run + "--annotation nix-closure/roots=/nix/store/canary bare ${pkgs.coreutils}/bin/true")
  '';
}
