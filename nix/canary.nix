# SPDX-License-Identifier: Apache-2.0

# A program that runs the README's canary with each of some engines. It succeeds only if
# every engine refuses the canary for the right reason: another error proves nothing.
{
  lib,
  pkgs,
  package,
  engines,
}:

pkgs.writeShellScript "nix-closure-canary" ''
  status=0
  for engine in ${lib.escapeShellArgs engines}; do
    report=$(${package}/bin/nix-closure doctor --canary --verbose --engine "$engine") || :
    printf '%s\n' "$report"
    case $report in
    *"[ok] $engine: the canary is refused"*) ;;
    *)
      echo "nix-closure: $engine: the canary was not refused:" \
        "containers may start WITHOUT their closure; see above" >&2
      status=1
      ;;
    esac
  done
  exit $status
''
