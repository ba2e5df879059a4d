# SPDX-License-Identifier: Apache-2.0

# The store of the topology test: small, so that it is copied in no time. prober is
# the path of that program.
{ prober }:

let
  run = name: script: attrs:
    derivation ({
      inherit name;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-euc" script ];
      PATH = "/usr/bin:/bin";
    } // attrs);

in rec {
  # What containers ask for, and what it references.
  program = run "program" "mkdir -p $out/bin; cp $prober $out/bin/prober; ln -s $data $out/data" {
    inherit prober data;
  };
  data = run "data" "echo data > $out" { };

  # What some ask for by a mount.
  named = run "named" "mkdir $out; echo named > $out/file" { };

  # What nobody asks for. The test puts its secret in both.
  foreign = run "foreign" "mkdir -p $out/bin; echo foreign > $out/bin/file" { };
  later = run "later" "mkdir -p $out/bin; echo later > $out/bin/file" { };
}
