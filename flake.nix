# SPDX-License-Identifier: Apache-2.0
{
  description = "OCI hook that gives a container exactly its closure in /nix/store";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { nixpkgs, ... }:
    let
      forSystems =
        f:
        nixpkgs.lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
          system: f nixpkgs.legacyPackages.${system}
        );
      packages = forSystems (pkgs: rec {
        nix-closure = pkgs.callPackage ./nix/package.nix { };
        default = nix-closure;
      });
    in
    {
      inherit packages;
      overlays.default = import ./nix/overlay.nix;
      nixosModules.default.imports = [ ./nix/nixos.nix ];
      homeManagerModules.default.imports = [ ./nix/home-manager.nix ];
      checks = forSystems (pkgs: {
        package = pkgs.callPackage ./nix/package.nix { };
        # Not run by the tests of this repository: it needs nixpkgs and KVM.
        nixos = pkgs.testers.runNixOSTest ./nix/test.nix;
      });
    };
}
