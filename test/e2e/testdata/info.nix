# SPDX-License-Identifier: Apache-2.0

# A closure-info of the trees of trees.nix, as nixpkgs' closureInfo makes it.
{ names }:

derivation {
  name = "closure-info";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  PATH = "/usr/bin:/bin";
  exportReferencesGraph = builtins.concatMap (root: [ root.name root ]) (import ./trees.nix { inherit names; });
  # The graph has derivers too.
  args = [ "-euc" "mkdir $out; cat root-* | grep ^/nix/store/ | grep -v '\\.drv$' | sort -u >$out/store-paths" ];
}
