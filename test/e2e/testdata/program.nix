# SPDX-License-Identifier: Apache-2.0

# A store path of a name like "hello-2.12", with the program bin/hello: a script of one
# line, run by the busybox beside it. And a directory share/.
{ name, line }:

derivation {
  inherit name line;
  system = builtins.currentSystem;
  builder = "/bin/sh";
  PATH = "/usr/bin:/bin";
  args = [
    "-euc"
    ''
      mkdir -p $out/bin $out/share
      cp /bin/busybox $out/bin/busybox
      program=$out/bin/''${name%%-*}
      printf '#!%s/bin/busybox sh\n%s\n' "$out" "$line" >$program
      chmod +x $program
    ''
  ];
}
