# SPDX-License-Identifier: Apache-2.0
# PATH OTHER: spoils the container's own database: another hash for the first path,
# the second forgotten.
import sqlite3, sys

db = sqlite3.connect("/nix/var/nix/db/db.sqlite")
db.execute("update ValidPaths set hash = 'sha256:" + 64 * "0" + "' where path = ?", (sys.argv[1],))
db.execute("delete from Refs where reference in (select id from ValidPaths where path = ?)", (sys.argv[2],))
assert db.execute("delete from ValidPaths where path = ?", (sys.argv[2],)).rowcount == 1
db.commit()
