# SPDX-License-Identifier: Apache-2.0

# nixos and home evaluate a module as NixOS and Home Manager do, and refuse a
# configuration of which an assertion fails.
let
  lib = import ./lib.nix;
  pkgs = import ./pkgs.nix { inherit lib; };

  evaluate =
    modules:
    let
      evaluated = lib.evalModules {
        modules = modules;
        specialArgs = { inherit pkgs; };
      };
      failed = builtins.filter (a: !a.assertion) evaluated.config.assertions;
    in
    if failed == [ ] then evaluated else throw "Failed assertions: ${(builtins.head failed).message}";
in
{
  inherit lib pkgs;
  nixos =
    module:
    evaluate [
      ./nixos.nix
      ../../../nix/nixos.nix
      module
    ];
  home =
    module:
    evaluate [
      ./home-manager.nix
      ../../../nix/home-manager.nix
      module
    ];
}
