# SPDX-License-Identifier: Apache-2.0
# PATH...: how each way to reach what must not be there fails, as JSON.
import errno, json, os, sys

result = {}

def attempt(what, f, *args):
    try:
        f(*args)
        result[what] = "reached"
    except OSError as e:
        result[what] = errno.errorcode[e.errno]

for p in sys.argv[1:] + ["/nix/store/.links", "/nix/var", "/nix/var/nix/db/db.sqlite", "/nix/var/nix/daemon-socket/socket"]:
    attempt("lstat " + p, os.lstat, p)
    attempt("open " + p, os.open, p, os.O_RDONLY)
    attempt("exec " + p, os.execv, p, ["x"])
    attempt("exec in " + p, os.execv, p + "/bin/busybox", ["true"])
    attempt("chdir " + p, os.chdir, p)
name = os.path.basename(sys.argv[1])
directory = os.open("/nix/store", os.O_RDONLY | os.O_DIRECTORY)
attempt("openat", lambda: os.open(name, os.O_RDONLY, dir_fd=directory))
attempt("through a path of the closure", os.lstat, os.path.dirname(os.path.dirname(sys.executable)) + "/../" + name)
print(json.dumps(result))
