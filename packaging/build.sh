#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# Packages in bin/dist/: deb, rpm and tar.gz for each architecture, the SBOM of each
# program, and SHA256SUMS. `make dist` calls it, with VERSION, PROGRAMS and SOURCE_DATE_EPOCH in
# the environment. The same sources and the same Go make the same bytes, whoever builds them,
# when and where.
set -eu
umask 022
export LC_ALL=C TZ=UTC
# Nothing of the builder's own environment goes into the programs.
export CGO_ENABLED=0 GOFLAGS='-mod=readonly -trimpath' GOAMD64=v1 GOARM64=v8.0

NFPM=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
CYCLONEDX=github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

cd "$(dirname "$0")/.."
version=${VERSION:?} epoch=${SOURCE_DATE_EPOCH:?}
top=$PWD
go=${GO:-go}
out=$top/bin/dist
work=$out/work
programs=${PROGRAMS:?}

"${MAKE:-make}" --no-print-directory cross manual

rm -rf "$out"
mkdir -p "$work"

# quietly calls a program, and prints what it says only if it fails.
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }; }

# licences prints those of the Go modules that are in the programs, by module.
licences() {
	# shellcheck disable=SC2046 # a list of words
	"$go" list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' \
		$(for p in $programs; do echo "./cmd/$p"; done) >"$work/modules"
	sort -u "$work/modules" | while read -r module at dir; do
		found=
		for file in "$dir"/LICENSE* "$dir"/License* "$dir"/COPYING* "$dir"/NOTICE*; do
			[ -f "$file" ] || continue
			found=yes
			printf '===== %s %s: %s\n\n' "$module" "$at" "${file##*/}"
			cat "$file"
			echo
		done
		[ -n "$found" ] || { echo "$module $at: no licence in $dir" >&2; exit 1; }
	done
	printf '===== Go: LICENSE\n\n'
	cat "$("$go" env GOROOT)/LICENSE"
}

# stage puts into a directory what goes below /usr or /usr/local: everything but the
# programs, which are of one architecture.
#
#   stage DIR PREFIX
stage() {
	hooks=$1/share/containers/oci/hooks.d units=$1/lib/systemd/system
	mkdir -p "$1/share" "$hooks" "$units"
	for file in examples/podman/*.json; do
		sed "s|/usr/local/bin|$2/bin|" "$file" >"$hooks/${file##*/}"
	done
	for file in examples/systemd/*; do
		sed "s|/usr/local/bin|$2/bin|" "$file" >"$units/${file##*/}"
	done
	cp -r bin/share/. "$1/share/"
	gzip -9n "$1"/share/man/man1/*
}

# documents puts the documents and examples into a directory.
#
#   documents DIR PREFIX
documents() {
	mkdir -p "$1"
	cp README.md SECURITY.md "$1/"
	cp -r docs examples "$1/"
	cp packaging/README.md "$1/README.packages.md"
	find "$1" -type f -exec sed -i "s|/usr/local/bin/nix-closure|$2/bin/nix-closure|g" {} +
}

changelog() {
	cat <<END
nix-closure ($version-1) unstable; urgency=medium

  * The changes are in changelog.gz.

 -- The nix-closure maintainers <nix-closure@users.noreply.github.com>  $(date -u -R -d "@$epoch")
END
}

licences >"$work/third-party-licenses"
for arch in amd64 arm64; do
	dir=$work/$arch
	name=nix-closure-$version-linux-$arch
	mkdir -p "$dir/usr" "$dir/etc/nix-closure" "$dir/license"
	stage "$dir/usr" /usr
	install -m 0644 packaging/config.toml "$dir/etc/nix-closure/"
	cp -r packaging/scripts "$dir/"
	sed -i "s|@UNITS@|$(grep -l '^\[Install\]' examples/systemd/* | xargs -n 1 basename | xargs)|" "$dir"/scripts/*
	mkdir "$dir/usr/bin"
	for program in $programs; do
		install -m 0755 "bin/linux-$arch/$program" "$dir/usr/bin/"
	done

	# Each distribution has its own place for completions of zsh, documents and licences.
	site=$dir/usr/share/zsh
	mkdir -p "$dir/deb/usr/share/zsh" "$dir/rpm/usr/share"
	mv "$site" "$dir/rpm/usr/share/zsh"
	cp -r "$dir/rpm/usr/share/zsh/site-functions" "$dir/deb/usr/share/zsh/vendor-completions"
	doc=$dir/deb/usr/share/doc/nix-closure
	documents "$doc" /usr
	documents "$dir/rpm/usr/share/doc/nix-closure" /usr
	cp CHANGELOG.md "$dir/rpm/usr/share/doc/nix-closure/"
	gzip -9nc CHANGELOG.md >"$doc/changelog.gz"
	changelog | gzip -9n >"$doc/changelog.Debian.gz"
	gzip -9nc "$work/third-party-licenses" >"$doc/third-party-licenses.gz"
	cp packaging/copyright "$doc/copyright"
	mkdir -p "$dir/deb/usr/share/lintian/overrides"
	cp packaging/lintian-overrides "$dir/deb/usr/share/lintian/overrides/nix-closure"
	cp LICENSE "$work/third-party-licenses" "$dir/license/"

	# The tar.gz is for /usr/local, or any other directory.
	tar=$dir/$name
	stage "$tar" /usr/local
	cp -r "$dir/usr/bin" "$tar/bin"
	documents "$tar/share/doc/nix-closure" /usr/local
	cp CHANGELOG.md LICENSE "$work/third-party-licenses" packaging/config.toml "$tar/share/doc/nix-closure/"
	# podman reads hook files nowhere below /usr/local: nix-closure install podman writes them.
	rm -r "$tar/share/containers"

	chmod -R u=rwX,go=rX "$dir"
	find "$dir" -exec touch -h -d "@$epoch" {} +
	tar --sort=name --format=ustar --owner=0 --group=0 --numeric-owner -C "$dir" -c "$name" |
		gzip -9n >"$out/$name.tar.gz"
	(
		cd "$dir"
		export ARCH="$arch"
		for packager in deb rpm; do
			quietly "$go" run "$NFPM" package --config "$top/packaging/nfpm.yaml" --packager "$packager" --target "$out/"
		done
	)
done

# What is in each program: the modules that its own build information names.
for program in $programs; do
	quietly "$go" run "$CYCLONEDX" bin -json -std -noserial -notimestamp -version "v$version" \
		-output "$out/$program-$version.cdx.json" "bin/linux-amd64/$program"
done

rm -rf "$work"
cd "$out"
sha256sum -- * >"$work.sums"
mv "$work.sums" SHA256SUMS
