#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# Builds the store of the tests. /nix must be the caller's own and writable, and
# /etc/nix/nix.conf must say: build-users-group =, sandbox = false, substituters =
#
#   build.sh OUT
#
# OUT/store.json      attribute of default.nix → store path
# OUT/roots/ATTRIBUTE symlink to it, and its GC root: remove it and the garbage
#                     collector may take the path
set -eu

[ $# -eq 1 ] || { echo "usage: $0 OUT" >&2; exit 1; }
here=$(dirname "$(realpath "$0")")
mkdir -p "$1/roots"
out=$(realpath "$1")

{
	echo '{'
	# shellcheck disable=SC2016 # dpkg-query's variables
	dpkg-query -W -f '"${Package}" = "${Version}";\n'
	echo '}'
} >"$out/versions.nix"

nix-build "$here" --arg versions "import $out/versions.nix" \
	--no-out-link --no-build-output --max-jobs auto --quiet >/dev/null
nix-instantiate --eval --strict --json "$here" --arg versions "import $out/versions.nix" >"$out/store.json"
echo >>"$out/store.json"
rm "$out/versions.nix"

# One line for each attribute: name path.
sed 's/","/\n/g; s/":"/ /g; s/[{}"]//g' "$out/store.json" | while read -r name path; do
	nix-store --realise "$path" --add-root "$out/roots/$name" >/dev/null
done
