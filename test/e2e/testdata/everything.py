# SPDX-License-Identifier: Apache-2.0
# DIRECTORY: what of other tenants is anywhere in the store; then what is underneath
# it and the state directory.
import ctypes, os, stat, sys

marker = b"another " + b"tenant"
found = []

def walk(top):
    for d, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(d, name)
            if name in ("secret", "busybox"):
                found.append(path)
            if stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb") as f:
                    if marker in f.read():
                        found.append(path)

walk("/nix/store")
umount2 = ctypes.CDLL(None, use_errno=True).umount2
count = 0
for point in (b"/nix/store", b"/nix/var/nix", b"/nix"):
    while umount2(point, 2) == 0:
        count += 1
        walk("/nix")
print(count, found)
