#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# After the files were unpacked: dpkg's postinst, rpm's %post. No unit is enabled or
# started. A plugin that runs is not restarted: without it, an engine that does not
# require it starts containers without their closure.
set -eu

units='nix-closure-nri.service nix-closure-verify.timer'

case "${1-} ${2-}" in
'configure '*)
	# So that purge finds the links of units that were enabled.
	for unit in $units; do
		deb-systemd-helper unmask "$unit" >/dev/null || true
		deb-systemd-helper update-state "$unit" >/dev/null || true
	done
	;;
[0-9]*) ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload >/dev/null || true
	if systemctl --quiet is-active nix-closure-nri.service; then
		echo 'nix-closure: nix-closure-nri.service still runs the program that was there when it started.' \
			'Restart it when no container starts: systemctl restart nix-closure-nri' >&2
	fi
fi
