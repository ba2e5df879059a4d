#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# COUNT PATH...: what Nix answers of the paths: of all together, and of the first
# COUNT each for itself.
count=$1
shift
ask() { echo "== $*"; nix-store "$@" | LC_ALL=C sort; }
ask -qR "$@"
each=$(mktemp -d)
for path; do
	[ "$count" -gt 0 ] || break
	count=$((count - 1))
	{
		ask -qR "$path"
		ask --query --references "$path"
		ask --query --referrers "$path"
	} >"$each/${path##*/}" &
done
wait
cat "$each"/*
# One line for each path, in their order.
for what in hash size; do echo "== $what"; nix-store --query --"$what" "$@"; done
