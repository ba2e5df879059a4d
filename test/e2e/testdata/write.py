# SPDX-License-Identifier: Apache-2.0
# FILE TREE, two store paths: how each way to change the store fails, as JSON.
import errno, json, os, stat, sys

data, tree = sys.argv[1:]
result = {}

def attempt(what, f, *args, **kwargs):
    try:
        f(*args, **kwargs)
        result[what] = "done"
    except OSError as e:
        result[what] = errno.errorcode[e.errno]

attempt("write", os.open, data, os.O_WRONLY)
attempt("truncate", os.truncate, data, 0)
attempt("create", os.open, "/nix/store/new", os.O_CREAT | os.O_WRONLY)
attempt("create in a path", os.open, tree + "/new", os.O_CREAT | os.O_WRONLY)
attempt("mkdir", os.mkdir, "/nix/store/new")
attempt("symlink", os.symlink, "/etc", "/nix/store/new")
attempt("hard link", os.link, data, "/nix/store/new")
attempt("chmod", os.chmod, data, 0o777)
attempt("chmod of the store", os.chmod, "/nix/store", 0o777)
attempt("chown", os.chown, data, 0, 0)
attempt("utime", os.utime, data)
attempt("setxattr", os.setxattr, data, "user.x", b"x")
attempt("rename", os.rename, data, "/nix/store/new")
attempt("mknod fifo", os.mknod, "/nix/store/new", stat.S_IFIFO | 0o644)
attempt("mknod device", os.mknod, "/nix/store/new", stat.S_IFCHR | 0o644, os.makedev(1, 3))
attempt("unlink", os.unlink, data)
attempt("unlink in a path", os.unlink, tree + "/" + os.listdir(tree)[0])
attempt("rmdir", os.rmdir, tree)
print(json.dumps(result))
