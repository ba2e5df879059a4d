# SPDX-License-Identifier: Apache-2.0
# DIRECTORY FILE LINK TREE DATA: whatever may make a writable store show the first
# three, which are store paths of others, by the last two, which are of the closure.
# Prints, as JSON, how each attempt ended and what was seen of the others.
import ctypes, errno, json, os, stat, sys

libc = ctypes.CDLL(None, use_errno=True)
directory, file, link, tree, data = sys.argv[1:]
marker = b"another " + b"tenant"
before = set(os.listdir("/nix/store"))
tried, seen = {}, []

MS_REMOUNT, MS_BIND, MS_REC = 32, 4096, 16384
AT_FDCWD, RENAME_EXCHANGE, RENAME_WHITEOUT = -100, 2, 4

def check(result):
    if result < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
    return result

def renameat2(a, b, flags):
    check(libc.renameat2(AT_FDCWD, a.encode(), AT_FDCWD, b.encode(), flags))

def mount(source, target, kind, flags, options=None):
    enc = lambda s: s and s.encode()
    check(libc.mount(enc(source), enc(target), enc(kind), flags, enc(options)))

def others(path):
    """whether a file is, or has what is in, a store path of others"""
    name, mode = os.path.basename(path), os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return marker in os.readlink(path).encode()
    if stat.S_ISREG(mode):
        with open(path, "rb") as f:
            if marker in f.read(1 << 16):
                return True
    return name in ("secret", "busybox")

def within(top, what):
    for d, names, files in os.walk(top):
        seen.extend(what + ": " + os.path.join(d, n) for n in names + files if others(os.path.join(d, n)))

def look(what, top="/nix/store"):
    for name in os.listdir(top):
        path = os.path.join(top, name)
        if name not in before or path in (tree, data):
            if others(path):
                seen.append(what + ": " + path)
            elif not os.path.islink(path):
                within(path, what)
    for path in (directory + "/secret", directory + "/bin/busybox"):
        if os.path.lexists(path):
            seen.append(what + ": " + path)

def attempt(what, f, *args):
    try:
        f(*args)
        tried[what] = "done"
    except OSError as e:
        tried[what] = errno.errorcode.get(e.errno, str(e.errno))
    look(what)

def quietly(f, *args):
    try:
        f(*args)
    except OSError:
        pass

def gone():
    """take away what has the others' names"""
    for path in (directory, file, link):
        for d, names, files in os.walk(path, topdown=False):
            for n in files:
                quietly(os.unlink, os.path.join(d, n))
            for n in names:
                quietly(os.rmdir, os.path.join(d, n))
        quietly(os.unlink, path)
        quietly(os.rmdir, path)

def write(path, text=b"mine"):
    with open(path, "wb") as f:
        f.write(text)

# By name.
attempt("mkdir", os.mkdir, directory)
attempt("mkdir in it", os.mkdir, directory + "/bin")
gone()
attempt("file", write, file)
attempt("file for a directory", write, directory)
gone()
attempt("directory for a file", os.mkdir, file)
attempt("directory for a link", os.mkdir, link)
gone()
attempt("symlink", os.symlink, os.path.basename(directory), "/nix/store/alias")
attempt("again after it was removed", os.mkdir, directory)
gone()

# Directories of the closure under their names, from every depth.
attempt("rename", os.rename, tree, directory)
attempt("rename in it", os.rename, directory + "/lib", directory + "/bin")
attempt("rename back", os.rename, directory, tree)
gone()
sub = sorted(n for n in os.listdir(tree) if os.path.isdir(tree + "/" + n))[0]
attempt("rename of what is below", os.rename, tree + "/" + sub, directory)
attempt("and back", os.rename, directory, tree + "/" + sub)
attempt("rename of a file", os.rename, data, file)
attempt("rename of a file back", os.rename, file, data)
quietly(os.mkdir, directory)
attempt("rename into a new one", os.rename, tree + "/" + sub, directory + "/bin")
attempt("rename out of it", os.rename, directory + "/bin", tree + "/" + sub)
attempt("exchange", renameat2, directory, tree, RENAME_EXCHANGE)
attempt("exchange back", renameat2, directory, tree, RENAME_EXCHANGE)
gone()
attempt("rename that leaves a whiteout", renameat2, data, file, RENAME_WHITEOUT)
quietly(os.rename, file, data)

# A file of which only the attributes were copied is found by its name from then on.
def attributes_only():
    os.chmod(data, 0o644)
    os.rename(data, file)
    os.rename(tree, directory)
    os.link(file, directory + "/data")
    os.unlink(file)
    os.rename(directory, tree)
    os.rename(tree + "/data", data)
attempt("attributes only", attributes_only)
quietly(os.rename, directory, tree)
quietly(os.rename, file, data)

# Whiteouts, and other nodes.
for where in (directory, tree + "/whiteout", "/nix/store/whiteout"):
    attempt("whiteout " + os.path.basename(where), os.mknod, where, stat.S_IFCHR, 0)
    quietly(os.unlink, where)

# Attributes of overlay, on what is new and what was there.
os.mkdir(directory)
write(file, b"")
os.mkdir("/nix/store/redirected")
write("/nix/store/redirected-file", b"")
targets = ["/nix/store", directory, file, tree, tree + "/" + sub, data, "/nix/store/redirected", "/nix/store/redirected-file"]
values = ["/" + os.path.basename(directory), os.path.basename(directory), "/store/" + os.path.basename(directory),
          "/../" + os.path.basename(directory), "/" + os.path.basename(file), os.path.basename(file)]
def attributes(target, space):
    space += ".overlay."
    for name in ("metacopy", "whiteout", "origin", "impure", "nlink", "overlay.redirect", "overlay.opaque"):
        quietly(os.setxattr, target, space + name, b"")
    for value in values:
        quietly(os.removexattr, target, space + "opaque")
        quietly(os.setxattr, target, space + "redirect", value.encode())
    for value in (b"n", b"x", b"y"):
        os.setxattr(target, space + "opaque", value)
for target in targets:
    for space in ("user", "trusted", "security"):
        attempt(space + " attributes", attributes, target, space)

# Hard links and files without a name.
attempt("hard link", os.link, data, "/nix/store/hard")
attempt("hard link written to", write, "/nix/store/hard", b"changed")
def without_name():
    fd = os.open("/nix/store", os.O_TMPFILE | os.O_RDWR)
    os.unlink(file)
    os.link("/proc/self/fd/%d" % fd, file, follow_symlinks=True)
attempt("a file without a name", without_name)

# Mounts. The other layers' names are in mountinfo.
def overlay_line():
    with open("/proc/self/mountinfo") as f:
        return [l for l in f if " /nix/store " in l][-1]
options = overlay_line().split()[-1].split(",")
layers = next(o for o in options if o.startswith("lowerdir="))
upper = next(o for o in options if o.startswith("upperdir="))
attempt("remount", mount, None, "/nix/store", None, MS_REMOUNT, layers)
attempt("remount with another layer", mount, None, "/nix/store", None, MS_REMOUNT, "lowerdir=/nix/store,redirect_dir=off")
attempt("remount of the mount", mount, None, "/nix/store", None, MS_REMOUNT | MS_BIND, None)
def reconfigure():
    """with the calls that Linux 5.2 brought: fspick, fsconfig, fsopen, fsmount"""
    fs = check(libc.syscall(433, AT_FDCWD, b"/nix/store", 0))
    for key, value in (("lowerdir", "/nix/store"), ("lowerdir+", "/"), ("redirect_dir", "off"), ("upperdir", "/tmp")):
        quietly(lambda: check(libc.syscall(431, fs, 1, key.encode(), value.encode(), 0)))
    check(libc.syscall(431, fs, 7, None, None, 0))
attempt("reconfigure", reconfigure)
os.mkdir("/tmp/m")
attempt("the same overlay", mount, "overlay", "/tmp/m", "overlay", 0, layers + "," + upper)
if tried["the same overlay"] == "done":
    look("the same overlay", "/tmp/m")
    libc.umount2(b"/tmp/m", 2)
def over(value):
    """a layer of the container's own over the store"""
    mount("tmpfs", "/tmp/m", "tmpfs", 0)
    for d in ("upper", "upper/there", "merged"):
        os.mkdir("/tmp/m/" + d)
    os.setxattr("/tmp/m/upper/there", "trusted.overlay.redirect", value.encode())
    mount("overlay", "/tmp/m/merged", "overlay", 0, "lowerdir=/tmp/m/upper:/nix/store,redirect_dir=follow")
    quietly(within, "/tmp/m/merged/there", "an overlay over the store")
for value in values:
    attempt("an overlay over the store", over, value)
    while libc.umount2(b"/tmp/m/merged", 2) == 0 or libc.umount2(b"/tmp/m", 2) == 0:
        continue
attempt("bind", mount, "/nix/store", "/tmp/m", None, MS_BIND | MS_REC)
def above():
    fd = os.open("/tmp/m", os.O_RDONLY | os.O_DIRECTORY)
    up = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    names = os.listdir(up)
    if os.path.basename(directory) in names or "store" in names:
        seen.append("above the store: " + repr(names))
attempt("above the store", above)
libc.umount2(b"/tmp/m", 2)

# By handles: from an inode of the overlay to the layers'.
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_char * 128)]
def by_handle():
    handle, mnt = Handle(bytes=128), ctypes.c_int()
    check(libc.name_to_handle_at(AT_FDCWD, b"/nix/store", ctypes.byref(handle), ctypes.byref(mnt), 0))
    fd = os.open("/nix/store", os.O_RDONLY)
    opened = check(libc.open_by_handle_at(fd, ctypes.byref(handle), os.O_RDONLY))
    up = os.open("..", os.O_RDONLY, dir_fd=opened)
    if os.path.basename(directory) in os.listdir(up) or "store" in os.listdir(up):
        seen.append("by handle: " + repr(os.listdir(up)))
attempt("by handle", by_handle)

# What the layers are called leads nowhere here.
for option in options:
    key, _, value = option.partition("=")
    if key in ("lowerdir", "upperdir", "workdir"):
        for path in value.split(":"):
            if path != "/nix/store" and os.path.lexists(path):
                seen.append("a layer can be reached: " + path)
for fd in range(1024):
    for name in ("upper", "work"):
        if os.path.lexists("/proc/self/fd/%d/%s" % (fd, name)):
            seen.append("a layer can be reached by descriptor %d" % fd)
with open("/proc/self/mountinfo") as f:
    for l in f:
        if " - tmpfs nix-closure " in l and " /nix/var/nix " not in l:
            seen.append("a layer is mounted: " + l)
print(json.dumps({"tried": tried, "seen": seen}))
