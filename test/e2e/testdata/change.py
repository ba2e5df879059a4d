# SPDX-License-Identifier: Apache-2.0
# FILE PROGRAM TREE: how each way to change a writable store ends, as JSON. FILE and
# PROGRAM are store paths that are files, TREE is one that is a directory.
import errno, json, os, shutil, sys

file, program, tree = sys.argv[1:]
result = {}

def attempt(what, f, *args):
    try:
        f(*args)
        result[what] = "done"
    except OSError as e:
        result[what] = errno.errorcode[e.errno]

def write(path):
    with open(path, "w") as f:
        f.write("changed")
    assert open(path).read() == "changed"

attempt("a new file", write, "/nix/store/new")
attempt("a new directory", os.mkdir, "/nix/store/new-directory")
attempt("a new file in it", write, "/nix/store/new-directory/file")
attempt("change a file", write, file)
attempt("remove a file", os.unlink, program)
attempt("a new file in a path", write, tree + "/new")
attempt("rename a path", os.rename, tree, "/nix/store/renamed")
attempt("rename it back", os.rename, "/nix/store/renamed", tree)
attempt("remove a path", shutil.rmtree, tree)
print(json.dumps(result))
