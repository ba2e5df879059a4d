# SPDX-License-Identifier: Apache-2.0
# PATH: what is in the store and in Nix's state directory, and the bytes of its database before and
# after Nix was asked about the path and what it references, as JSON.
import base64, json, os, sqlite3, subprocess, sys

state = "/nix/var/nix"

def files():
    found = {}
    for name in os.listdir(state + "/db"):
        with open(state + "/db/" + name, "rb") as f:
            found[name] = base64.b64encode(f.read().rstrip(b"\0") if name == "reserved" else f.read()).decode()
    return found

result = {
    "Store": sorted(os.listdir("/nix/store")) + os.listdir("/nix/store/.links"),
    "Tree": sorted(os.path.relpath(os.path.join(d, n), state) for d, names, rest in os.walk(state) for n in names + rest),
    "Files": files(),
}
db = sqlite3.connect("file:" + state + "/db/db.sqlite?mode=ro&immutable=1", uri=True)
result["Freelist"] = db.execute("pragma freelist_count").fetchone()[0]
db.close()
subprocess.run(["/usr/bin/nix-store", "--query", "--referrers", sys.argv[1]], check=True, stdout=subprocess.DEVNULL)
result["Used"] = files()
print(json.dumps(result))
