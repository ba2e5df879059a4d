# SPDX-License-Identifier: Apache-2.0
# owners|no-owners PATH...: a line for each file at and below the paths.
import hashlib, os, stat, sys

def line(path):
    s = os.lstat(path)
    kind = stat.S_IFMT(s.st_mode)
    size, what = 0, ""
    if stat.S_ISREG(kind):
        with open(path, "rb") as f:
            data = f.read()
        size, what = s.st_size, hashlib.sha256(data).hexdigest()
        assert len(data) == size, path
    elif stat.S_ISLNK(kind):
        what = os.readlink(path)
    owner = (s.st_uid, s.st_gid) if sys.argv[1] == "owners" else ""
    print(ascii(path), oct(s.st_mode), s.st_mtime_ns, owner, size, what)

for top in sys.argv[2:]:
    line(top)
    if not os.path.islink(top):
        for directory, names, files in os.walk(top):
            names.sort()
            for name in sorted(names + files):
                line(os.path.join(directory, name))
