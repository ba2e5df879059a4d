#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# Builder: copies programs, libraries and Python modules of the Debian packages
# $packages to $out, and makes them load everything from the store: $libc,
# $libraries, or $out itself.
#
# shellcheck disable=SC2154 # the variables are the derivation's
# shellcheck disable=SC2086 # lists are words, and no store path has a space
set -eu

# wanted FILE: does a file of a package have a place in the store path?
wanted() {
	for pattern in $without; do
		# shellcheck disable=SC2254 # it is a pattern
		case $1 in $pattern) return 1 ;; esac
	done
	case $1 in
	/lib/*-linux-gnu/*/* | /usr/lib/*-linux-gnu/*/*) return 1 ;;
	/lib/*-linux-gnu/*.so* | /usr/lib/*-linux-gnu/*.so*) ;;
	/usr/lib/python3*/*) ;;
	# A script would run the host's interpreter.
	/bin/* | /usr/bin/* | /usr/sbin/*) ! head -c 2 "$1" | grep -q '#!' || return 1 ;;
	*) return 1 ;;
	esac
	[ ! -d "$1" ]
}

dpkg -L $packages >all
set -f # the patterns of $without are for wanted, not for the file system
while read -r file; do
	if wanted "$file"; then printf '%s\n' "$file"; fi
done <all >chosen
set +f
mkdir -p "$out"
# S: symlinks keep their targets.
tar -cPf files.tar -T chosen \
	--transform='s,^.*/s\?bin/,bin/,S;s,^/.*-linux-gnu/,lib/,S;s,^/usr/lib/python,lib/python,S'
tar -xf files.tar -C "$out" --no-same-owner
eval "$finish"

if [ -z "$libc" ]; then
	libc=$out
	# The loader and the libraries around it find libc.so.6 loaded already. It
	# alone looks for another, libgcc_s, and names an interpreter.
	libs=$out/lib/libc.so.6
	progs=$libs
else
	libs=$(find "$out" -type f -name '*.so*')
	progs=$(find "$out/bin" -type f 2>/dev/null || :)
fi
loader=$(echo "$libc"/lib/ld-linux-*.so.*)

runpath=$out/lib:$libc/lib
for library in $libraries; do
	runpath=$runpath:$library/lib
done
if [ -n "$progs" ]; then patchelf --set-interpreter "$loader" $progs; fi
patchelf --set-rpath "$runpath" $libs $progs
# What a file does not need, it must not reference. libgcc_s is opened, not needed.
[ "$libc" = "$out" ] || patchelf --shrink-rpath $libs $progs

for file in $libs $progs; do
	"$loader" --list "$file" >list
	if grep -v 'linux-vdso\|statically linked\|^	/nix/store/\|=> /nix/store/' list; then
		echo "$file lacks a library, or finds it outside the store" >&2
		exit 1
	fi
done
