#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# The only process of the machine that TestVirtiofs boots, with a busybox for its shell.
# Its /nix/store is a view of the host. What it sees goes to the second serial port, where
# the kernel writes nothing, a line each: KEY VALUE. The host answers there.
#
# /test   shell variables: program, foreign and later, store paths
#
# Where it ends early, the kernel panics and the machine ends with it.
set -eu
PATH=/bin

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci fuse virtiofs; do
	insmod "/modules/$module.ko"
done
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
mkdir -p /nix/store
mount -t virtiofs nix-store /nix/store
program='' directory='' foreign=''
# shellcheck disable=SC1091 # the test writes it
. /test
set +e # what fails from here on is for the test to see

lines() { sed "s|^|$1 |" >&3; }
names() { find /nix/store -mindepth 1 -maxdepth 1 | sed 's|.*/||'; }
# The console's messages are not the program's.
names | lines name
"$program" guest 2>&1 | lines runs
touch /nix/store/new 2>&1 | lines write
touch "$directory/new" 2>&1 | lines write
stat "$foreign" 2>&1 | lines foreign
echo "ready ." >&3
read -r later <&3
stat "$later" 2>&1 | lines later
names | wc -l | lines count
echo "end ." >&3
sync
poweroff -f
