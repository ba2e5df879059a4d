#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# After the files were unpacked: dpkg's postinst, rpm's %post. No unit is enabled or
# started. A service that runs is not restarted: while the plugin is away, an engine that
# does not require it starts containers without their closure.
set -eu

units='@UNITS@'

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
	for unit in $units; do
		case $unit in *.service) ;; *) continue ;; esac
		if systemctl --quiet is-active "$unit"; then
			echo "nix-closure: $unit still runs the program that was there when it started." \
				"Restart it when no container starts: systemctl restart $unit" >&2
		fi
	done
fi
