# SPDX-License-Identifier: Apache-2.0
{
  description = "A stand-in for the flake of nixpkgs";

  outputs =
    _:
    let
      # Its modules come from the flake that calls it.
      lib = import ./lib.nix // {
        nixosSystem =
          { system, modules }:
          lib.evalModules {
            modules = [ ./nixos.nix ] ++ modules;
            specialArgs.pkgs = import ./pkgs.nix { inherit lib system; };
          };
      };
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
    in
    {
      inherit lib;
      legacyPackages = lib.genAttrs systems (system: import ./pkgs.nix { inherit lib system; });
    };
}
