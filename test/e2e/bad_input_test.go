// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const (
	hash    = "00000000000000000000000000000000"
	unknown = "/nix/store/" + hash + "-unknown"
)

// badInput is a container that must not start.
type badInput struct {
	name        string
	annotations map[string]string
	// change changes the bundle; config is the text of config.toml.
	change func(t *testing.T, b *bundle)
	config string
	// prepare changes the host for the length of the test.
	prepare func(t *testing.T)
	// want is the whole message after the container's name. ROOT stands for the
	// bundle's root directory.
	want string
}

func roots(value string) map[string]string { return map[string]string{"nix-closure/roots": value} }

func with(annotations map[string]string, more ...string) map[string]string {
	for i := 0; i < len(more); i += 2 {
		annotations[more[i]] = more[i+1]
	}
	return annotations
}

// info makes a store path of a directory with this as its store-paths, and
// returns the annotation for it.
func info(t *testing.T, storePaths string) map[string]string {
	t.Helper()
	dir := t.TempDir() + "/closure-info"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/store-paths", []byte(storePaths), 0o644); err != nil {
		t.Fatal(err)
	}
	return map[string]string{"nix-closure/closure-info": strings.TrimSpace(must(t, "nix-store", "--add", dir))}
}

func badInputs(t *testing.T) []badInput {
	env := store["env"]
	const (
		badHash = "the hash is not 32 characters of Nix's base 32"
		badName = "the name is not 1 to 211 characters of letters, digits and +-._?=, or begins in a way Nix forbids"
		subpath = "has an empty component, or `.` or `..`, below the store path"
		keys    = "unknown; the keys are roots, closure-info, mode, registration, listing, writable"
		ann     = "reading the annotations: annotation "
	)
	notValid := func(p string) string {
		return p + " is not valid: Nix has no such path registered; fetch or build it first, for example with " +
			"`nix-store --realise " + p + "`"
	}
	nobody := info(t, unknown+"\n")
	notClosed := info(t, env+"\n")
	emptyInfo := info(t, "")
	blankInfo := info(t, env+"\n\n"+store["data"]+"\n")
	belowInfo := info(t, env+"/bin\n")
	outsideInfo := info(t, "/etc/passwd\n")
	path := func(m map[string]string) string { return m["nix-closure/closure-info"] }
	linkInfo := t.TempDir() + "/link"
	if err := os.Mkdir(linkInfo, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", linkInfo+"/store-paths"); err != nil {
		t.Fatal(err)
	}
	linkInfo = strings.TrimSpace(must(t, "nix-store", "--add", linkInfo))
	gone := t.TempDir() + "/gone"
	if err := os.WriteFile(gone, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	gone = strings.TrimSpace(must(t, "nix-store", "--add", gone))
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	fifo := strings.TrimSuffix(unknown, "unknown") + "fifo"
	if err := syscall.Mkfifo(fifo, 0o444); err != nil {
		t.Fatal(err)
	}
	register := exec.Command("nix-store", "--register-validity", "--reregister")
	register.Stdin = strings.NewReader(fifo + "\n\n0\n")
	_ = register.Run() // Nix refuses to hash it, and the row below is made without.
	count := len(closureOf(t, env))
	first := closureOf(t, env)[0]
	if first == filepath.Base(env) {
		first = closureOf(t, env)[1]
	}
	first = storeDir + "/" + first

	return []badInput{
		// Annotations.
		{name: "no such key", annotations: with(roots(env), "nix-closure/root", env),
			want: ann + "nix-closure/root: " + keys},
		{name: "key in another case", annotations: with(roots(env), "nix-closure/Mode", "bind"),
			want: ann + "nix-closure/Mode: " + keys},
		{name: "empty key", annotations: with(roots(env), "nix-closure/", ""), want: ann + "nix-closure/: " + keys},
		{name: "key with a slash", annotations: with(roots(env), "nix-closure/mode/x", "bind"),
			want: ann + "nix-closure/mode/x: " + keys},
		{name: "no roots", annotations: map[string]string{"nix-closure/mode": "bind"},
			want: "reading the annotations: annotations: neither nix-closure/roots nor nix-closure/closure-info is " +
				"given; name at least one store path"},
		{name: "roots and closure-info",
			annotations: with(roots(env), "nix-closure/closure-info", store["closureInfo"]),
			want: "reading the annotations: annotations: both nix-closure/roots and nix-closure/closure-info " +
				"are given; take one of them"},
		{name: "empty roots", annotations: roots(""),
			want: ann + "nix-closure/roots: is empty; name at least one store path"},
		{name: "blank roots", annotations: roots(" ,\n\t"),
			want: ann + "nix-closure/roots: is empty; name at least one store path"},
		{name: "empty closure-info", annotations: map[string]string{"nix-closure/closure-info": ""},
			want: ann + "nix-closure/closure-info: is empty; name at least one store path"},
		{name: "no such mode", annotations: with(roots(env), "nix-closure/mode", "fast"),
			want: ann + `nix-closure/mode: "fast" is not a mode; use auto, overlay or bind`},
		{name: "empty mode", annotations: with(roots(env), "nix-closure/mode", ""),
			want: ann + `nix-closure/mode: "" is not a mode; use auto, overlay or bind`},
		{name: "mode with a space", annotations: with(roots(env), "nix-closure/mode", "bind "),
			want: ann + `nix-closure/mode: "bind " is not a mode; use auto, overlay or bind`},
		{name: "listing neither true nor false", annotations: with(roots(env), "nix-closure/listing", "no"),
			want: ann + `nix-closure/listing: "no" is neither true nor false`},
		{name: "writable neither true nor false", annotations: with(roots(env), "nix-closure/writable", "1"),
			want: ann + `nix-closure/writable: "1" is neither true nor false`},
		{name: "registration in capitals", annotations: with(roots(env), "nix-closure/registration", "True"),
			want: ann + `nix-closure/registration: "True" is neither true nor false`},
		{name: "writable in bind mode", annotations: with(with(roots(env), "nix-closure/writable", "true"),
			"nix-closure/mode", "bind"),
			want: "reading the annotations: annotations: nix-closure/writable is true, which one overlay with a " +
				"layer in memory does, and nix-closure/mode is bind; ask for mode overlay or auto"},
		{name: "for a container that is not named", annotations: with(roots(env), "app.nix-closure/mode", "bind"),
			want: ann + `app.nix-closure/mode: is for one container of a pod, and the engine does not say which one ` +
				`this is; leave out "app."`},
		{name: "a dot with no container before it", annotations: with(roots(env), ".nix-closure/mode", "bind"),
			want: ann + ".nix-closure/mode: no container's name before the dot"},

		// Store paths.
		{name: "the store directory", annotations: roots("/nix/store"),
			want: ann + `nix-closure/roots: "/nix/store": not below the store directory /nix/store`},
		{name: "the store directory with a slash", annotations: roots("/nix/store/"),
			want: ann + `nix-closure/roots: "/nix/store/": ` + badHash},
		{name: "beside the store", annotations: roots("/nix/storeX/" + filepath.Base(env)),
			want: ann + `nix-closure/roots: "/nix/storeX/` + filepath.Base(env) +
				`": not below the store directory /nix/store`},
		{name: "outside the store", annotations: roots("/etc/passwd"),
			want: ann + `nix-closure/roots: "/etc/passwd": not below the store directory /nix/store`},
		{name: "up from the store", annotations: roots("/nix/store/../../etc"),
			want: ann + `nix-closure/roots: "/nix/store/../../etc": ` + badHash},
		{name: "up from a path", annotations: roots(env + "/../" + filepath.Base(store["foreign"])),
			want: ann + `nix-closure/roots: "` + env + "/../" + filepath.Base(store["foreign"]) + `": ` + subpath},
		{name: "two slashes", annotations: roots("/nix//store/" + filepath.Base(env)),
			want: ann + `nix-closure/roots: "/nix//store/` + filepath.Base(env) +
				`": not below the store directory /nix/store`},
		{name: "relative", annotations: roots(env[1:]),
			want: ann + `nix-closure/roots: "` + env[1:] + `": not below the store directory /nix/store`},
		{name: "hard links", annotations: roots("/nix/store/.links"),
			want: ann + `nix-closure/roots: "/nix/store/.links": ` + badHash},
		{name: "a letter that is not of base 32", annotations: roots("/nix/store/e" + hash[1:] + "-x"),
			want: ann + `nix-closure/roots: "/nix/store/e` + hash[1:] + `-x": ` + badHash},
		{name: "short hash", annotations: roots("/nix/store/" + hash[1:] + "-x"),
			want: ann + `nix-closure/roots: "/nix/store/` + hash[1:] + `-x": ` + badHash},
		{name: "no name", annotations: roots("/nix/store/" + hash + "-"),
			want: ann + `nix-closure/roots: "/nix/store/` + hash + `-": ` + badName},
		{name: "a colon in the name", annotations: roots("/nix/store/" + hash + "-a:b"),
			want: ann + `nix-closure/roots: "b": not below the store directory /nix/store`},
		{name: "long name", annotations: roots("/nix/store/" + hash + "-" + strings.Repeat("x", 212)),
			want: ann + `nix-closure/roots: "/nix/store/` + hash + "-" + strings.Repeat("x", 212) + `": ` + badName},
		{name: "control characters", annotations: roots("/nix/store/\x1b[2J"),
			want: ann + `nix-closure/roots: "/nix/store/\x1b[2J": ` + badHash},
		{name: "one bad path among good ones", annotations: roots(env + " /nix/store/x"),
			want: ann + `nix-closure/roots: "/nix/store/x": ` + badHash},

		// Closures.
		{name: "not registered", annotations: roots(unknown), want: "resolving " + unknown + ": " + notValid(unknown)},
		{name: "there, and not registered", annotations: roots(fifo),
			want: "resolving " + fifo + ": " + notValid(fifo)},
		{name: "one of two not registered", annotations: roots(env + "," + unknown),
			want: "resolving " + env + " and 1 more: " + notValid(unknown)},
		{name: "registered, and not there", annotations: roots(gone),
			want: "making the view: " + gone +
				": is registered, but not in the store; `nix-store --verify --check-contents --repair` mends " +
				"the store"},
		{name: "over max-paths", annotations: roots(env), config: fmt.Sprintf("max-paths = %d\n", count-1),
			want: fmt.Sprintf("resolving %s: the closure has more than %d store paths; ask for less, or raise "+
				"max-paths in the configuration", env, count-1)},
		{name: "closure-info below a store path",
			annotations: map[string]string{"nix-closure/closure-info": store["closureInfo"] + "/store-paths"},
			want: ann + `nix-closure/closure-info: "` + store["closureInfo"] +
				`/store-paths": below a store path; the closure-info must be one itself`},
		{name: "closure-info that is a file", annotations: map[string]string{"nix-closure/closure-info": store["data"]},
			want: "resolving closure-info " + store["data"] + ": " + store["data"] +
				": not a directory, so not the output of nixpkgs' closureInfo"},
		{name: "closure-info that is a symbolic link",
			annotations: map[string]string{"nix-closure/closure-info": store["link"]},
			want: "resolving closure-info " + store["link"] + ": " + store["link"] +
				": not a directory, so not the output of nixpkgs' closureInfo"},
		{name: "closure-info without store-paths", annotations: map[string]string{"nix-closure/closure-info": env},
			want: "resolving closure-info " + env + ": " + env +
				": has no file `store-paths`, so it is not the output of nixpkgs' closureInfo"},
		{name: "closure-info that is not there", annotations: map[string]string{"nix-closure/closure-info": unknown},
			want: "resolving closure-info " + unknown + ": " + unknown +
				" is not valid: Nix has no such path registered; fetch or build it first, for example with " +
				"`nix-store --realise " + unknown + "`"},
		{name: "store-paths that is a symbolic link",
			annotations: map[string]string{"nix-closure/closure-info": linkInfo},
			want:        "resolving closure-info " + linkInfo + ": " + linkInfo + "/store-paths: a symbolic link"},
		{name: "store-paths that is empty", annotations: emptyInfo,
			want: "resolving closure-info " + path(emptyInfo) + ": " + path(emptyInfo) +
				"/store-paths: lists no store path"},
		{name: "store-paths with an empty line", annotations: blankInfo,
			want: "resolving closure-info " + path(blankInfo) + ": " + path(blankInfo) +
				`/store-paths: line 2: "": not below the store directory /nix/store`},
		{name: "store-paths with a path below", annotations: belowInfo,
			want: "resolving closure-info " + path(belowInfo) + ": " + path(belowInfo) + `/store-paths: line 1: "` +
				env + `/bin": below a store path, not one`},
		{name: "store-paths with a path outside", annotations: outsideInfo,
			want: "resolving closure-info " + path(outsideInfo) + ": " + path(outsideInfo) +
				`/store-paths: line 1: "/etc/passwd": not below the store directory /nix/store`},
		{name: "store-paths with a path that is not registered", annotations: nobody,
			want: "resolving closure-info " + path(nobody) + ": " + notValid(unknown)},
		{name: "store-paths that is no closure", annotations: notClosed,
			want: "resolving closure-info " + path(notClosed) + ": " + path(notClosed) +
				"/store-paths is no closure: " + first +
				" is referenced, but not listed; make the closure-info with nixpkgs' closureInfo"},

		// The host.
		{name: "no database", annotations: roots(env),
			config:  "state-dir = \"/nix/var/elsewhere\"\nnix-store = \"/nowhere/nix-store\"\n",
			prepare: func(t *testing.T) { makeState(t, "/nix/var/elsewhere") },
			want: "resolving " + env +
				": stat /nix/var/elsewhere/db/db.sqlite: no such file or directory; nix-store cannot answer either: " +
				"/nowhere/nix-store: fork/exec /nowhere/nix-store: no such file or directory"},
		{name: "a database that is none", annotations: roots(env),
			config: "state-dir = \"/nix/var/broken\"\nnix-store = \"/bin/false\"\n",
			prepare: func(t *testing.T) {
				makeState(t, "/nix/var/broken")
				if err := os.WriteFile("/nix/var/broken/db/db.sqlite", []byte(strings.Repeat("not a database", 1000)),
					0o644); err != nil {
					t.Fatal(err)
				}
			},
			want: "resolving " + env + ": reading /nix/var/broken/db/db.sqlite: file is not a database (26); " +
				"nix-store cannot answer either: /bin/false: exit status 1"},
		{name: "a runtime directory that others can write", annotations: roots(env),
			config: "runtime-dir = \"/run/open\"\n",
			prepare: func(t *testing.T) {
				if err := os.MkdirAll("/run/open", 0o755); err != nil {
					t.Fatal(err)
				}
			},
			want: "opening the runtime directory: /run/open can be entered or written by others (mode 0755); check " +
				"who wrote in it, then `chmod 0700 /run/open`"},
		{name: "a runtime directory of another user", annotations: roots(env),
			config: "runtime-dir = \"/run/theirs\"\n",
			prepare: func(t *testing.T) {
				if err := os.MkdirAll("/run/theirs", 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Chown("/run/theirs", 1000, 1000); err != nil {
					t.Fatal(err)
				}
			},
			want: "opening the runtime directory: /run/theirs belongs to user 1000, not to user 0 who runs the hook; " +
				"remove it"},
		{name: "a state directory of another user", annotations: roots(env),
			config: "state-dir = \"/nix/var/theirs\"\n",
			prepare: func(t *testing.T) {
				makeState(t, "/nix/var/theirs")
				if err := os.Chown("/nix/var/theirs", 1000, 1000); err != nil {
					t.Fatal(err)
				}
			},
			want: "resolving " + env + ": holding the garbage collector off: /nix/var/theirs belongs to user 1000 " +
				"and has mode 0755, and so can be changed by others than user 0 who runs the hook; a single-user " +
				"installation of Nix cannot be used by another user"},
		{name: "no store", annotations: roots("/run/no/store/" + filepath.Base(env)),
			config: "store-dir = \"/run/no/store\"\n",
			want:   "looking at the host's store: lstat /run/no: no such file or directory"},

		// config.toml.
		{name: "configuration that is no TOML", annotations: roots(env), config: "mode =\n",
			want: "reading the configuration: /etc/nix-closure/config.toml: line 1: toml: unexpected character " +
				"U+000A at start of value"},
		{name: "unknown key", annotations: roots(env), config: "mode = \"auto\"\nmax_paths = 1\n",
			want: `reading the configuration: /etc/nix-closure/config.toml: line 2: unknown key "max_paths"`},
		{name: "wrong type", annotations: roots(env), config: "max-paths = \"many\"\n",
			want: "reading the configuration: /etc/nix-closure/config.toml: max-paths = \"many\": not a number from " +
				"1 to 10000000; leave it out for the default"},
		{name: "configured mode", annotations: roots(env), config: "mode = \"fast\"\n",
			want: `reading the configuration: /etc/nix-closure/config.toml: mode = "fast": not one of auto, ` +
				`overlay, bind`},
		{name: "relative runtime directory", annotations: roots(env), config: "runtime-dir = \"run\"\n",
			want: "reading the configuration: /etc/nix-closure/config.toml: runtime-dir = \"run\": not an absolute " +
				"path without `.`, `..` or a slash too many"},
		{name: "a comma in the runtime directory", annotations: roots(env), config: "runtime-dir = \"/run/a,b\"\n",
			want: `reading the configuration: /etc/nix-closure/config.toml: runtime-dir = "/run/a,b": has a colon, ` +
				`comma, backslash, quote or line break, which a mount option cannot carry`},
		{name: "no paths at all", annotations: roots(env), config: "max-paths = 0\n",
			want: "reading the configuration: /etc/nix-closure/config.toml: max-paths = 0: not a number from 1 to " +
				"10000000; leave it out for the default"},
		{name: "a policy", annotations: roots(env), config: "[[allow]]\nroots = [\"/nix/store/*-hello\"]\n",
			want: "checking what is allowed here: " + env +
				" is not allowed here: no [[allow]] of the configuration names it for a container without a " +
				"Kubernetes namespace; add it there, or ask for another"},

		// config.json.
		{name: "the store in the image is a file", annotations: roots(env), change: func(t *testing.T, b *bundle) {
			if err := os.Mkdir(b.dir+"/rootfs/nix", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(b.dir+"/rootfs/nix/store", nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, want: "attaching the view: /nix/store in the container: not a directory; the image must have a directory " +
			"there, or nothing"},
		{name: "the store in the image is a link to nowhere", annotations: roots(env),
			change: func(t *testing.T, b *bundle) {
				if err := os.Symlink("/nowhere", b.dir+"/rootfs/nix"); err != nil {
					t.Fatal(err)
				}
			}, want: "attaching the view: /nix/store in the container: /nix is a symbolic link in the image that " +
				"leads nowhere; the image must have a directory there, or nothing"},
		{name: "covered mount of the store", annotations: roots(env), change: func(_ *testing.T, b *bundle) {
			b.addMount(object{"destination": "/nix/store", "type": "bind", "source": "/nix/store",
				"options": []string{"rbind"}})
			b.addMount(object{"destination": "/nix", "type": "tmpfs", "source": "tmpfs"})
		}, want: "attaching the view: mount on /nix/store: shows /nix/store of the host, and with it more than the " +
			"closure; take the mount out, or take another root"},
		{name: "covered mount on the store", annotations: roots(env), change: func(t *testing.T, b *bundle) {
			b.addMount(object{"destination": "/nix/store", "type": "bind", "source": t.TempDir(),
				"options": []string{"rbind"}})
			b.addMount(object{"destination": "/nix", "type": "tmpfs", "source": "tmpfs"})
		}, want: "attaching the view: /nix/store in the container: a mount is in the way of the view: another mount " +
			"covers it, or config.json does not list it; remove it"},
		{name: "mount of the host", annotations: roots(env), change: func(_ *testing.T, b *bundle) {
			b.addMount(object{"destination": "/host", "type": "bind", "source": "/", "options": []string{"rbind"}})
		}, want: "looking at the container's mounts: mount of / on /host: shows / of the host, and with it more than " +
			"the closure; take the mount out"},
	}
}

// makeState makes a state directory without a database.
func makeState(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []string{"/db", "/gcroots"} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { removeAll(t, dir) })
}

// A container that is asked for in any of these ways does not start, says the
// one line that is expected, in the log and on standard error, and leaves
// nothing behind.
func TestBadInput(t *testing.T) {
	for _, c := range badInputs(t) {
		t.Run(c.name, func(t *testing.T) {
			if c.prepare != nil {
				c.prepare(t)
			}
			if c.config != "" {
				writeConfig(t, c.config)
			}
			b := newBundle(t, c.annotations, "echo it runs", "createRuntime", "poststop")
			if c.change != nil {
				c.change(t, b)
			}
			id, stdout, stderr, err := b.run(t, "runc")
			if err == nil || stdout != "" {
				t.Fatalf("it started: %q %v", stdout, err)
			}
			want := "nix-closure: container " + id + ": " + strings.ReplaceAll(c.want, "ROOT", b.dir+"/rootfs")
			if got := lastError(t); got != want {
				t.Errorf("the log says\n%s, want\n%s", got, want)
			}
			// runc escapes what a hook printed for its own log.
			if quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(want); !strings.Contains(stderr, quoted) {
				t.Errorf("standard error is\n%s, want in it\n%s", stderr, quoted)
			}
			nothingLeft(t)
		})
	}
}

// hookInput is input that the hook gets from a runtime, or from someone who
// tries it by hand.
type hookInput struct {
	name, stage, stdin string
	container          string // as the message names it; empty: "container x"
	want               string // the whole message after the container's name
}

func hookInputs(t *testing.T) []hookInput {
	env := roots(store["env"])
	process := exec.Command("sleep", "60")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = process.Process.Kill(); _ = process.Wait() })
	isolated := exec.Command("sleep", "60")
	isolated.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := isolated.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = isolated.Process.Kill(); _ = isolated.Wait() })

	// bundle makes a bundle with this config.json.
	bundle := func(config string) string {
		dir := t.TempDir()
		if err := os.Mkdir(dir+"/rootfs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/config.json", []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	// root is a config.json with this root, and a PID namespace of the container's own.
	root := func(path string) string {
		return bundle(`{"root":{"path":"` + path + `"},"linux":{"namespaces":[{"type":"pid"}]}}`)
	}
	good, broken, null := root("rootfs"), bundle(`{"root":`), bundle(`null`)
	rootless, odd, mounts := bundle(`{}`), bundle(`{"root":{"path":"rootfs"},"Mounts":[]}`),
		bundle(`{"root":{"path":"rootfs"},"mounts":{}}`)
	host, none, away := root("/"), t.TempDir(), root("elsewhere")
	backslash := bundle(`{"root":{"path":"rootfs"},"mounts":[{"destination":"/x","type":"overlay","source":"overlay",` +
		`"options":["lowerdir=/a\\:b:/c"]}]}`)

	const (
		onStdin   = "reading the OCI state: the OCI state on standard input"
		nobody    = "a container"
		readingOn = "reading config.json from standard input: "
		bundleOf  = "reading the container's config.json: "
	)
	long := strings.Repeat("x", 201)
	badID := func(id string) string {
		return fmt.Sprintf("%s: id %q: not 1 to 200 letters, digits and _+-. with no dot first", onStdin, id)
	}
	annotated := func(value string) string {
		return `{"root":{"path":"/x"},"annotations":{"nix-closure/roots":"` + value + `"}}`
	}
	return []hookInput{
		{name: "no state", stage: "createRuntime", container: nobody,
			want: onStdin + " is not JSON of the expected form: unexpected end of JSON input"},
		{name: "a state that is no JSON", stage: "createRuntime", stdin: "x", container: nobody,
			want: onStdin + " is not JSON of the expected form: invalid character 'x' looking for beginning of value"},
		{name: "a state that is a list", stage: "createRuntime", stdin: "[]", container: nobody,
			want: onStdin + " is not JSON of the expected form: json: cannot unmarshal array into Go value of type " +
				"spec.State"},
		{name: "no id", stage: "createRuntime", stdin: `{"bundle":"/x","annotations":{"nix-closure/roots":"x"}}`,
			container: nobody,
			want:      onStdin + " has no id"},
		{name: "an id that leads elsewhere", stage: "createRuntime", stdin: state("../x", 1, "/x", env),
			container: nobody, want: badID("../x")},
		{name: "an id with a slash", stage: "createRuntime", stdin: state("a/b", 1, "/x", env), container: nobody,
			want: badID("a/b")},
		{name: "a hidden id", stage: "createRuntime", stdin: state(".x", 1, "/x", env), container: nobody,
			want: badID(".x")},
		{name: "a long id", stage: "createRuntime", stdin: state(long, 1, "/x", env), container: nobody,
			want: badID(long)},
		{name: "an id with a line break", stage: "createRuntime", stdin: state("x\ny", 1, "/x", env), container: nobody,
			want: badID("x\ny")},
		{name: "a relative bundle", stage: "createRuntime", stdin: state("x", 1, "bundle", env),
			want: onStdin + `: bundle "bundle": not an absolute path`},

		{name: "no config.json", stage: "createRuntime", stdin: state("x", 1, none, env),
			want: bundleOf + "open " + none + "/config.json: no such file or directory"},
		{name: "a config.json that is cut off", stage: "createRuntime", stdin: state("x", 1, broken, env),
			want: bundleOf + broken + "/config.json: not a JSON object: unexpected end of JSON input"},
		{name: "a config.json that is null", stage: "createRuntime", stdin: state("x", 1, null, env),
			want: bundleOf + null + "/config.json: not a JSON object: null"},
		{name: "no root in config.json", stage: "createRuntime", stdin: state("x", 1, rootless, env),
			want: bundleOf + rootless + "/config.json: has no root.path"},
		{name: "a field in another case", stage: "createRuntime", stdin: state("x", 1, odd, env),
			want: bundleOf + odd + `/config.json: field "Mounts": some runtimes take it for "mounts" and some do not`},
		{name: "mounts that are no list", stage: "createRuntime", stdin: state("x", 1, mounts, env),
			want: bundleOf + mounts + "/config.json: not of the expected form: field mounts is a JSON object"},
		{name: "an overlay with a backslash", stage: "createRuntime", stdin: state("x", 1, backslash, env),
			want: `looking at the container's mounts: mount of overlay on /x: overlay option ` +
				`"lowerdir=/a\\:b:/c": has a ` +
				`backslash, which can hide a path`},

		{name: "no pid", stage: "createRuntime", stdin: state("x", 0, good, env),
			want: "attaching the view: the OCI state has pid 0: no process whose mount namespace could be joined; " +
				"call the " +
				"hook as createContainer"},
		{name: "a pid that is not told", stage: "createRuntime", stdin: state("x", -1, good, env),
			want: "attaching the view: the OCI state has pid -1: no process whose mount namespace could be " +
				"joined; call " +
				"the hook as createContainer"},
		{name: "a process that is gone", stage: "createRuntime", stdin: state("x", 4194000, good, env),
			want: "looking at the container's process: open /proc/4194000/stat: no such file or directory"},
		{name: "no mount namespace", stage: "createRuntime", stdin: state("x", process.Process.Pid, good, env),
			want: "attaching the view: the container has no mount namespace of its own (linux.namespaces of " +
				"config.json); " +
				"give it one"},
		{name: "createContainer in the host's namespace", stage: "createContainer", stdin: state("x", -1, good, env),
			want: "attaching the view: the hook was called in the host's mount namespace, as createContainer " +
				"hooks never " +
				"are; call it as createRuntime"},
		{name: "the host as root", stage: "createRuntime", stdin: state("x", isolated.Process.Pid, host, env),
			want: "attaching the view: mount on /: shows /nix/store of the host, and with it more than the " +
				"closure; take " +
				"the mount out, or take another root"},
		{name: "a root that leads elsewhere", stage: "createRuntime",
			stdin: state("x", isolated.Process.Pid, good, env),
			want: "attaching the view: the container's root " + good +
				"/rootfs is not the root of a mount, as runtimes make it; its name leads elsewhere than it did"},
		{name: "a root that is not there", stage: "createRuntime", stdin: state("x", isolated.Process.Pid, away, env),
			want: "attaching the view: opening the container's root: open " +
				"" + away + "/elsewhere: no such file or directory"},

		{name: "precreate without config.json", stage: "precreate", container: nobody,
			want: readingOn + "not of the expected form: unexpected end of JSON input"},
		{name: "precreate with a root that is none", stage: "precreate", stdin: annotated("/etc"), container: nobody,
			want: `reading the annotations: annotation nix-closure/roots: "/etc": not below the store directory ` +
				`/nix/store`},
		{name: "precreate with the store at another place", stage: "precreate",
			stdin: `{"root":{"path":"/x"},"annotations":{"nix-closure/roots":"` + store["env"] +
				`"},"mounts":[{"destination":"/x","type":"bind","source":"/nix","options":["bind"]}]}`,
			container: nobody,
			want: "looking at the container's mounts: mount of /nix on /x: shows /nix of the host, and with it " +
				"more than " +
				"the closure; take the mount out"},
	}
}

// The same for what no runtime would do, or does only when it is broken.
func TestBadHookInput(t *testing.T) {
	for _, c := range hookInputs(t) {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, err := callHook(c.stdin, c.stage)
			who := c.container
			if who == "" {
				who = "container x"
			}
			want := "nix-closure: " + who + ": " + c.want + "\n"
			if err == nil || stdout != "" || stderr != want {
				t.Errorf("%v %q, standard error is\n%s, want\n%s", err, stdout, stderr, want)
			}
			nothingLeft(t)
		})
	}
	// A container's removal never fails for what poststop does not understand.
	for _, stdin := range []string{"", "{", state("../x", 0, "/x", roots("x"))} {
		_, stderr, err := callHook(stdin, "poststop")
		if err != nil || !strings.HasPrefix(stderr, "nix-closure: a container: reading the OCI state: ") {
			t.Errorf("poststop of %q: %v %s", stdin, err, stderr)
		}
	}
	const stages = "the last argument is not one of precreate, prestart, createRuntime, createContainer, poststop"
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "[]: " + stages},
		{[]string{"start"}, `["start"]: ` + stages},
		{[]string{"--config"}, `["--config"]: ` + stages},
		{[]string{"--config", "/x"}, "[]: " + stages},
		{[]string{"createRuntime", "poststop"}, `"createRuntime": not an option`},
		{[]string{"--help", "x"}, `"--help": not an option`},
		{[]string{"--engine", "Podman", "createRuntime"},
			`engine "Podman": not one of podman, docker, containerd, cri-o`},
		{[]string{"--engine=", "createRuntime"}, `engine "": not one of podman, docker, containerd, cri-o`},
		{[]string{"--annotation", "nix-closure/roots", "createRuntime"},
			`--annotation "nix-closure/roots": not KEY=VALUE with a key of this program, each once`},
		{[]string{"--annotation", "roots=x", "createRuntime"},
			`--annotation "roots": not KEY=VALUE with a key of this program, each once`},
		{
			[]string{"--annotation", "nix-closure/mode=bind", "--annotation=nix-closure/mode=bind", "createRuntime"},
			`--annotation "nix-closure/mode": not KEY=VALUE with a key of this program, each once`,
		},
	} {
		args, want := c.args, "nix-closure: "+c.want+"; see --help\n"
		stdout, stderr, err := callHook("", args...)
		if err == nil || stdout != "" || stderr != want {
			t.Errorf("%q: %v %q, standard error is\n%s, want\n%s", args, err, stdout, stderr, want)
		}
	}
}

// What cannot be read, and a call that is not understood, are in the log too: some
// runtimes show only that the hook failed.
func TestRefusedCallsAreLogged(t *testing.T) {
	for _, c := range []struct{ arg, want string }{
		{"createRuntime", "nix-closure: a container: reading the OCI state from standard input: read "},
		{"precreate", "nix-closure: a container: reading config.json from standard input: read "},
		{"start", `nix-closure: ["start"]: the last argument is not one of `},
	} {
		dir, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		var errs strings.Builder
		cmd := exec.Command(filepath.Join(*bin, "nix-closure-hook"), c.arg)
		cmd.Stdin, cmd.Stderr = dir, &errs
		err = cmd.Run()
		_ = dir.Close()
		if said := lastError(t); err == nil || !strings.HasPrefix(said, c.want) || errs.String() != said+"\n" {
			t.Errorf("%s: %v, standard error is %q, the log says %q, want %q", c.arg, err, errs.String(), said, c.want)
		}
	}
	_, stderr, err := callHook(`{"annotations":{"nix-closure/mode":"bind"}}`, "--annotation",
		"nix-closure/mode=overlay", "precreate")
	if want := "nix-closure: a container: reading the annotations: annotation nix-closure/mode: "; err == nil ||
		!strings.HasPrefix(stderr, want) {
		t.Errorf("%v %q, want %q", err, stderr, want)
	}
}
