# SPDX-License-Identifier: Apache-2.0
# DIRECTORY: how many bytes its file system has, how many can be written to it, and
# how writing more ends.
import errno, os, sys

fs = os.statvfs(sys.argv[1])
written = 0
try:
    with open(sys.argv[1] + "/fill", "wb", buffering=0) as f:
        while True:
            written += f.write(bytes(65536))
except OSError as e:
    print(fs.f_blocks * fs.f_frsize, written, errno.errorcode[e.errno])
