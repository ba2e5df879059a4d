#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# Before the files are removed: dpkg's prerm, rpm's %preun. An upgrade goes on: dpkg and
# rpm replace each file at once, so the hook is there at every moment.
#
# A removal is refused while somebody relies on the programs, for it would weaken them
# silently: podman starts a container again without the hook.
set -eu

units='@UNITS@'

case ${1-} in
remove | 0) ;;
*) exit 0 ;;
esac

# Nobody else's program of this name.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
used=
if containers=$(nix-closure inspect --format '{{.ID}} {{.Name}} {{.Status}}'); then
	containers=$(printf '%s\n' "$containers" | grep -v -e ' ended$' -e '^$' || true)
	[ -z "$containers" ] || used="$used
these containers have a closure; remove them first:
$containers"
else
	used="$used
whether containers have a closure cannot be told: \`nix-closure inspect\` failed"
fi
if views=$(nix-closure view list); then
	views=$(printf '%s\n' "$views" | sed -n '2,$p')
	[ -z "$views" ] || used="$used
these views are mounted; \`nix-closure view umount\` them first:
$views"
else
	used="$used
whether views are mounted cannot be told: \`nix-closure view list\` failed"
fi
for record in /etc/nix-closure/installed/*; do
	[ -e "$record" ] || continue
	engine=${record##*/}
	used="$used
an engine's configuration names the programs; take them out first: nix-closure install --uninstall ${engine%.json}"
done

if [ -n "$used" ]; then
	echo "nix-closure is in use:$used" >&2
	if [ "${NIX_CLOSURE_FORCE_REMOVE-}" != yes ]; then
		echo 'It is not removed. To remove it all the same, set NIX_CLOSURE_FORCE_REMOVE=yes in the environment.' >&2
		exit 1
	fi
fi
nix-closure gc >/dev/null || true

if [ -d /run/systemd/system ]; then
	for unit in $units; do
		if command -v deb-systemd-invoke >/dev/null; then
			deb-systemd-invoke stop "$unit" >/dev/null || true
		else
			systemctl --no-reload disable --now "$unit" >/dev/null || true
		fi
	done
fi
