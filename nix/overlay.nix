# SPDX-License-Identifier: Apache-2.0

# pkgs.nix-closure.
final: _prev: {
  nix-closure = final.callPackage ./package.nix { };
}
