# SPDX-License-Identifier: Apache-2.0

# Builder: store-paths, registration and total-nar-size of a closure, as nixpkgs'
# closureInfo writes them.

import json
import os

with open(os.environ["NIX_ATTRS_JSON_FILE"], encoding="utf-8") as f:
    attrs = json.load(f)
out = attrs["outputs"]["out"]
closure = sorted(attrs["closure"], key=lambda p: p["path"])


def write(name, lines):
    with open(os.path.join(out, name), "w", encoding="utf-8") as f:
        f.writelines(f"{line}\n" for line in lines)


os.mkdir(out)
write("store-paths", (p["path"] for p in closure))
write("total-nar-size", [sum(p["narSize"] for p in closure)])

# What `nix-store --load-db` reads; the empty line is the deriver, which is not
# in the closure.
registration = []
for p in closure:
    registration += [p["path"], p["narHash"], p["narSize"], "", len(p["references"])]
    registration += sorted(p["references"])
write("registration", registration)
