# SPDX-License-Identifier: Apache-2.0

# Small closures that share nothing, a root for each name: a directory, a file and
# a symbolic link are in each. Every store path has its own name as its content.
# One of each has size random numbers in addition.
{ names, size ? 0 }:

let
  run = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" script ];
    PATH = "/usr/bin:/bin";
  };
  dir = name: more: run name ''
    mkdir $out
    echo ${name} >$out/content
    ${more}
  '';
  tree = name:
    let
      leaf = dir "leaf-${name}" "awk 'BEGIN { srand(1); for (i = 0; i < ${toString size}; i++) print rand() }' >$out/numbers";
      file = run "file-${name}" "echo file-${name} >$out";
      link = run "link-${name}" "ln -s ${leaf} $out";
      middle = dir "middle-${name}" "echo ${leaf} ${file} >$out/references";
    in dir "root-${name}" "echo ${middle} ${link} ${file} >$out/references";
in map tree names
