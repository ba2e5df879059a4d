# SPDX-License-Identifier: Apache-2.0

# A store path that needs another one, and a third that neither needs.
let
  run = name: script:
    derivation {
      inherit name;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-euc" script ];
      PATH = "/usr/bin:/bin";
    };
in
rec {
  words = run "words-1.0" "echo hello >$out";
  hello = run "hello-1.0" "mkdir -p $out/bin; cp /bin/busybox $out/bin/; ln -s ${words} $out/words";
  foreign = run "foreign-1.0" "echo foreign >$out";
}
