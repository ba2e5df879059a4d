#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After answers.sh, with the same paths: what Nix finds to mend, what it says of
# $foreign, which is not in the closure, whether it knows the paths after that, and
# whose its directories are.
#
# shellcheck disable=SC2154 # the test assigns it
nix-store --verify --check-contents 2>&1
echo "verified: $?"
nix-store --query --hash "$foreign" 2>&1
echo "foreign: $?"
nix-store --check-validity "$@" && echo valid
stat -c '%n %u:%g' /nix/var/nix /nix/store
