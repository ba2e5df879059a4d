# SPDX-License-Identifier: Apache-2.0
# watch FILE: lock the file and watch it until the end of standard input.
# use FILE: open it and try to lock it.
import ctypes, fcntl, os, select, sys

how, path = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
if how == "watch":
    notify = libc.inotify_init1(0)
    mine = os.open(path, os.O_RDONLY)
    fcntl.flock(mine, fcntl.LOCK_EX)
    assert libc.inotify_add_watch(notify, path.encode(), 0x20) >= 0  # IN_OPEN
    print("ready", flush=True)
    sys.stdin.read()
    print("events", 1 if select.select([notify], [], [], 0)[0] else 0)
else:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("locked True")
    except BlockingIOError:
        print("locked False")
