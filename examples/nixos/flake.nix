# SPDX-License-Identifier: Apache-2.0
{
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
  inputs.nix-closure.url = "github:nix-closure/nix-closure";
  inputs.nix-closure.inputs.nixpkgs.follows = "nixpkgs";

  outputs =
    { nixpkgs, nix-closure, ... }:
    {
      nixosConfigurations.host = nixpkgs.lib.nixosSystem {
        system = "x86_64-linux";
        modules = [
          nix-closure.nixosModules.default
          ./configuration.nix
        ];
      };
    };
}
