// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nix-closure/nix-closure/test/testhost"
)

const (
	repository = "../.." // its root
	// ownMachine is set in the machine of TestReadme.
	ownMachine = "NIX_CLOSURE_TEST_README"
	greeting   = "Hello, world!\n"
)

const (
	greetCommand = "podman run --annotation nix-closure/roots=/nix/store/…-hello-2.12 " +
		"IMAGE /nix/store/…-hello-2.12/bin/hello"
	canaryCommand = "podman run --rm --annotation nix-closure/roots=/nix/store/canary IMAGE /bin/true"
)

// command is a command or a file of a document, as it is written there, and what the test
// does with it: it runs it, or has a reason not to.
type command struct {
	text   string
	run    func(h *readmeHost, t *testing.T, script string)
	notRun string
}

// document is a document of this repository with commands in it.
type document struct {
	name string // from the root of the repository
	// blocks are the commands of its indented blocks, and inline those of its running text,
	// each in the order in which they run.
	blocks, inline []command
}

// documents are those whose commands are known, in the order in which a reader comes to
// them.
var documents = []document{
	{name: "README.md", blocks: []command{
		{text: greetCommand, run: greets},
		{text: "make demo", notRun: "it makes a machine, and this is one; .ci/run runs it"},
		{text: "make test", notRun: "this is a part of it"},
		{text: canaryCommand, run: (*readmeHost).canary},
		{text: "make && make install", run: (*readmeHost).installs},
		{text: "make uninstall", run: (*readmeHost).uninstalls},
		{text: "podman run --annotation nix-closure/roots=/nix/store/…-hello-2.12:/nix/store/…-bash-5.2 " +
			"IMAGE /nix/store/…-bash-5.2/bin/bash -c /nix/store/…-hello-2.12/bin/hello", run: greets},
		{text: "nix-closure resolve /nix/store/…-hello-2.12", run: (*readmeHost).resolves},
	}, inline: []command{
		{text: "podman run --device nix-closure/closure=NAME", notRun: "it is in a block of docs/engines.md"},
		{text: "podman start", notRun: "TestStartedAgain"},
		{text: "podman restart", notRun: "TestStartedAgain"},
		{text: "nix-closure doctor", notRun: "TestDoctorFinds"},
		{text: "nix-store --realise", notRun: "it is in a block of docs/annotations.md"},
	}},
	{name: "docs/engines.md", blocks: []command{
		{text: "nix-closure cdi generate hello=/nix/store/…-hello-2.12", run: (*readmeHost).names},
		{text: "podman run --device nix-closure/closure=hello IMAGE /nix/store/…-hello-2.12/bin/hello",
			run: (*readmeHost).greetsByDevice},
		{text: "podman --runtime /usr/local/bin/nix-closure-runtime run --rm " +
			"--annotation nix-closure/roots=/nix/store/…-hello-2.12 IMAGE /nix/store/…-hello-2.12/bin/hello",
			run: (*readmeHost).wrapped},
		{text: `make && make install PREFIX="$HOME/.local" HOOKSDIR="$HOME/.local/share/nix-closure/hooks.d"`,
			run: (*readmeHost).installsForUser},
		{text: "[engine]\nhooks_dir = [\"/home/USER/.local/share/nix-closure/hooks.d\"]",
			run: (*readmeHost).configuresUser},
		{text: "cp examples/podman/precreate/nix-closure-precreate.json /usr/share/containers/oci/hooks.d/",
			run: (*readmeHost).addsPrecreate},
		{text: "cp examples/containerd/nix-closure-runtime.toml /etc/containerd/conf.d/",
			notRun: "TestExampleDefaultRuntime"},
		{text: "systemctl restart containerd", notRun: noSystemd},
		{text: "containerd config dump | grep -A12 'runtimes.nix-closure'", notRun: "there is no containerd"},
		{text: "kubectl apply -f examples/kubernetes/base/namespace.yaml", notRun: noKubernetes},
		{text: "helm install nix-closure examples/kubernetes/chart --namespace nix-closure --set distribution=k3s",
			notRun: "there is no API server; TestExampleChart renders it"},
		{text: "kubectl apply -k examples/kubernetes/overlays/k3s",
			notRun: "there is no API server; TestExampleOverlays renders it"},
		{text: "kubectl apply -f examples/kubernetes/canary.yaml", notRun: noKubernetes},
		{text: "kubectl wait --for=jsonpath='{.status.phase}'=Succeeded --timeout=60s pod/nix-closure-canary",
			notRun: noKubernetes},
		{text: "kubectl describe pod nix-closure-canary", notRun: noKubernetes},
		{text: "kubectl delete pod nix-closure-canary", notRun: noKubernetes},
		{text: "useradd --system --no-create-home --shell /usr/sbin/nologin nix-closure", notRun: noSystemd},
		{text: "cp examples/systemd/nix-closure-device-plugin.service /etc/systemd/system/", notRun: noSystemd},
		{text: "systemctl enable --now nix-closure-device-plugin", notRun: noSystemd},
		{text: "docker run --annotation nix-closure/roots=/nix/store/…-hello-2.12 IMAGE " +
			"/nix/store/…-hello-2.12/bin/hello",
			notRun: "TestDocker… does it by Docker's API"},
		{text: "cp examples/systemd/nix-closure-nri.service /etc/systemd/system/", notRun: noSystemd},
		{text: "systemctl enable --now nix-closure-nri", notRun: noSystemd},
		{text: "curl http://127.0.0.1:9440/healthz", notRun: "there is no engine; tests of plugins do it"},
		{text: "curl http://127.0.0.1:9440/metrics", notRun: "there is no engine; tests of plugins do it"},
	}, inline: []command{
		{text: `podman --hooks-dir "$PWD/bin/hooks.d" run --rm …`, run: (*readmeHost).fromTheTree},
	}},
	{name: "docs/annotations.md", blocks: []command{
		{text: "podman run --annotation nix-closure/roots=/nix/store/…-hello-2.12 " +
			"-v /nix/store/…-bash-5.2:/nix/store/…-bash-5.2 IMAGE /nix/store/…-bash-5.2/bin/bash " +
			"-c /nix/store/…-hello-2.12/bin/hello", run: greets},
		{text: "podman run --annotation nix-closure/roots=/nix/store/…-hello-2.12 " +
			"-v /nix/store/…-hello-2.12:/nix/store/…-hello-2.12 --workdir /nix/store/…-hello-2.12/share " +
			"IMAGE /nix/store/…-hello-2.12/bin/hello", run: greets},
		{text: "nix-store --realise /nix/store/…-hello-2.12 --add-root /nix/var/nix/gcroots/hello",
			run: (*readmeHost).keeps},
	}},
	{name: "docs/configuration.md", blocks: []command{
		{text: exampleConfig, run: (*readmeHost).configures},
	}, inline: []command{
		{text: "nix-closure gc --dry-run", run: (*readmeHost).reads},
	}},
	{name: "docs/architecture.md", inline: []command{
		{text: "nix-closure gc", run: (*readmeHost).reads},
	}},
	{name: "nix/README.md", blocks: []command{
		{text: "systemctl start nix-closure-canary", notRun: "needs systemd; TestNixOSPodman runs its program"},
		{text: canaryCommand, run: (*readmeHost).canary},
	}},
}

const (
	noSystemd    = "needs systemd"
	noKubernetes = "there is no API server; TestExampleDaemonSet has the pod"
)

const exampleConfig = `substitute = true           # fetch a missing root from Nix's substituters
runtime    = "crun"         # what nix-closure-runtime becomes

[[allow]]                   # without a rule, any valid store path may be asked for
# namespaces = ["team-a"]   # of Kubernetes; without this line, the rule is for every container
roots = ["/nix/var/nix/gcroots/teams/a/*", "/nix/store/*-hello-*", "/nix/store/*-bash-*"]`

// readmeHost is a host as the README leaves it.
type readmeHost struct {
	runtime string // podman's, if nobody says otherwise
	paths   map[string]string
	alice   *ordinary
}

// A host as the README leaves it: in a machine of its own, after a real make install,
// every command of the README and of docs/ does what they say, in their order, with runc
// and with crun. A command that this test does not know makes it fail.
func TestReadme(t *testing.T) {
	if os.Getenv(ownMachine) == "" {
		inOwnMachine(t)
		return
	}
	var todo []command
	var stores strings.Builder
	for _, d := range documents {
		text := readDocument(t, d.name)
		if d.name == "README.md" {
			if !strings.Contains(text, "`"+canaryReason+"…`") {
				t.Errorf("the README does not say that the canary's reason is %q", canaryReason)
			}
			d.checkInline(t, text)
		}
		d.checkBlocks(t, text)
		for _, c := range d.inline {
			if !strings.Contains(text, "`"+c.text+"`") {
				t.Errorf("%s does not name %q", d.name, c.text)
			}
		}
		todo = append(append(todo, d.blocks...), d.inline...)
	}
	for _, c := range todo {
		if c.run != nil {
			stores.WriteString(c.text + "\n")
		}
	}
	nixDaemon(t)
	h := &readmeHost{paths: map[string]string{}, alice: user(t, "alice")}
	h.alice.withoutConf(t)
	h.alice.loadImage(t, ordinaryImage(t))
	for _, p := range placeholders(stores.String()) {
		h.paths[p] = buildProgram(t, strings.TrimPrefix(p, "/nix/store/…-"))
	}
	install(t)
	for _, h.runtime = range runtimes {
		t.Run(h.runtime, func(t *testing.T) {
			setEngine(t, fmt.Sprintf("runtime = %q", h.runtime))
			for _, c := range todo {
				if c.run == nil {
					t.Logf("not run: %q: %s", c.text, c.notRun)
					continue
				}
				c.run(h, t, h.script(t, c.text))
				must(t, "podman", "rm", "--all", "--force", "--time", "0")
				nothingLeft(t)
			}
			removeAll(t, configFile)
		})
	}
}

// inOwnMachine runs the test that calls it once more, in another machine.
func inOwnMachine(t *testing.T) {
	t.Helper()
	args := []string{"-test.run", "^" + t.Name() + "$", "-test.timeout", "10m", "-bin", *bin}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	within := "NIX_CLOSURE_TEST_MACHINE=" + testhost.Dir()
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return v == within }), ownMachine+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func readDocument(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// checkBlocks fails if the commands of a text's indented blocks are not those of the
// table, in its order.
func (d document) checkBlocks(t *testing.T, text string) {
	t.Helper()
	var got []string
	var block []string
	isPicture := false
	for line := range strings.Lines(text + "\n") {
		if strings.HasPrefix(line, "```") {
			isPicture = !isPicture
		}
		if isPicture {
			continue
		}
		if indented, ok := strings.CutPrefix(line, "    "); ok {
			block = append(block, strings.TrimRight(indented, "\n"))
			continue
		}
		if strings.TrimSpace(line) == "" && len(block) > 0 && strings.Contains(strings.Join(block, ""), " = ") {
			block = append(block, "") // a file may have empty lines
			continue
		}
		whole := strings.TrimRight(strings.Join(block, "\n"), "\n")
		block = nil
		if strings.Contains(whole, " = ") {
			got = append(got, whole)
			continue
		}
		for line := range strings.Lines(whole) {
			command, _, _ := strings.Cut(line, " #")
			if command = strings.TrimSpace(command); command != "" {
				got = append(got, command)
			}
		}
	}
	var want []string
	for _, c := range d.blocks {
		want = append(want, c.text)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s has the commands\n%s\nand this test knows\n%s", d.name, strings.Join(got, "\n"),
			strings.Join(want, "\n"))
	}
}

// inlineCommand is a command in the running text.
var inlineCommand = regexp.MustCompile("`((?:make|podman|docker|nix-closure|nix-store|nix|loginctl|systemctl) [^`]*)`")

// checkInline fails if the running text has a command that is not in the table.
func (d document) checkInline(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "    ") {
			continue
		}
		for _, m := range inlineCommand.FindAllStringSubmatch(line, -1) {
			isKnown := func(c command) bool { return c.text == m[1] }
			if !slices.ContainsFunc(d.inline, isKnown) {
				t.Errorf("%s names a command that this test does not know: %q", d.name, m[1])
			}
		}
	}
}

// script puts what this host has in the place of what the README leaves open.
func (h *readmeHost) script(t *testing.T, text string) string {
	t.Helper()
	for placeholder, path := range h.paths {
		text = strings.ReplaceAll(text, placeholder, path)
	}
	text = strings.ReplaceAll(text, " IMAGE ", " "+ordinaryImage(t)+" ")
	return strings.ReplaceAll(text, "/home/USER", h.alice.home)
}

// sh runs a command as root in the directory of the tree.
func (h *readmeHost) sh(script string, env ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Dir = repository
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func (h *readmeHost) must(t *testing.T, script string, env ...string) string {
	t.Helper()
	stdout, stderr, err := h.sh(script, env...)
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s%s\n%s", h.runtime, script, err, stdout, stderr, lastLog(t))
	}
	return stdout
}

// greets: a container runs the program.
func greets(h *readmeHost, t *testing.T, script string) {
	t.Helper()
	if out := h.must(t, script); out != greeting {
		t.Errorf("%s: %s: %q", h.runtime, script, out)
	}
}

// canary: it fails for the reason that the README says, and where it says so.
func (h *readmeHost) canary(t *testing.T, script string) {
	t.Helper()
	if _, stderr, err := h.sh(strings.Replace(script, "nix-closure/roots=", "org.example/roots=", 1)); err != nil {
		t.Fatalf("without the annotation: %v %s", err, stderr)
	}
	_, stderr, err := h.sh(script)
	if err == nil {
		t.Errorf("%s: the canary starts", h.runtime)
	}
	log := readLog(t)
	last := log[len(log)-1]
	if !strings.Contains(last.Msg, canaryReason) || h.runtime == "runc" && !strings.Contains(stderr, canaryReason) {
		t.Errorf("%s: the last line of the log is %+v, and podman says %s", h.runtime, last, stderr)
	}
	if _, stderr, err = h.alice.call("/bin/sh", "-c", script); err == nil {
		t.Errorf("%s: the canary starts for a user", h.runtime)
	}
	if said := newestError(h.alice.log(t)); !strings.Contains(said, canaryReason) {
		t.Errorf("%s: the user's log says %q, and podman %s", h.runtime, said, stderr)
	}
}

func (h *readmeHost) installs(t *testing.T, script string) {
	t.Helper()
	h.must(t, script)
	h.canary(t, h.script(t, canaryCommand))
}

// uninstalls: all of it is gone, which the canary sees; then it is installed again.
func (h *readmeHost) uninstalls(t *testing.T, script string) {
	t.Helper()
	h.must(t, script)
	programs, err := filepath.Glob("/usr/local/bin/nix-closure*")
	hooks, err2 := filepath.Glob(podmansHooks + "/*")
	manual := strings.Fields(must(t, "find", "/usr/local/share", "-name", "*nix-closure*"))
	if left := slices.Concat(programs, hooks, manual); errors.Join(err, err2) != nil || len(left) > 0 {
		t.Errorf("left behind: %q %v %v", left, err, err2)
	}
	if _, stderr, err := h.sh(h.script(t, canaryCommand)); err != nil {
		t.Errorf("without the hook the canary does not start, which shows nothing: %v %s", err, stderr)
	}
	h.must(t, "make install")
}

// wrapped: no hook files are needed.
func (h *readmeHost) wrapped(t *testing.T, script string) {
	t.Helper()
	must(t, "mv", podmansHooks, podmansHooks+".away")
	defer must(t, "mv", podmansHooks+".away", podmansHooks)
	greets(h, t, script)
}

// names: the device is there.
func (h *readmeHost) names(t *testing.T, script string) {
	t.Helper()
	h.must(t, script)
	if out := h.must(t, "nix-closure cdi list"); !strings.Contains(out, "hello  ok") {
		t.Errorf("%s: %s", script, out)
	}
}

// greetsByDevice: for root and for a user, without hook files, and not without the device.
func (h *readmeHost) greetsByDevice(t *testing.T, script string) {
	t.Helper()
	must(t, "mv", podmansHooks, podmansHooks+".away")
	defer must(t, "mv", podmansHooks+".away", podmansHooks)
	greets(h, t, script)
	if out := h.alice.must(t, "/bin/sh", "-c", script); out != greeting {
		t.Errorf("%s: %s: a user's container: %q", h.runtime, script, out)
	}
	h.alice.must(t, "podman", "rm", "--all", "--force", "--time", "0")
	h.alice.nothingLeft(t)
	h.must(t, "nix-closure cdi remove hello")
	if stdout, _, err := h.sh(script); err == nil {
		t.Errorf("%s: without the device: %q", script, stdout)
	}
}

// installsForUser: for a user without root's help. The tree is root's here, so root calls
// make, with the user's home directory; the user owns what comes there.
func (h *readmeHost) installsForUser(t *testing.T, script string) {
	t.Helper()
	h.must(t, "make uninstall")
	h.must(t, script, h.homeOf(t, h.alice)...)
	must(t, "chown", "--recursive", h.alice.name, h.alice.home+"/.local")
}

// homeOf is an environment with a user's home directory. What Go keeps below HOME is not
// made once more there.
func (h *readmeHost) homeOf(t *testing.T, u *ordinary) []string {
	t.Helper()
	own := strings.Fields(h.must(t, "PATH=$PATH:/usr/local/go/bin go env GOCACHE GOMODCACHE"))
	if len(own) != 2 {
		t.Fatalf("go env: %q", own)
	}
	return []string{"HOME=" + u.home, "GOCACHE=" + own[0], "GOMODCACHE=" + own[1]}
}

// configuresUser: then the user's podman finds the hook, and root's does not. Afterwards
// all is as root had it.
func (h *readmeHost) configuresUser(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(h.alice.conf(), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	canary := h.script(t, canaryCommand)
	_, stderr, err := h.alice.call("/bin/sh", "-c", canary)
	if err == nil || !strings.Contains(newestError(h.alice.log(t)), canaryReason) {
		t.Errorf("%s: the user's canary: %v %s", h.runtime, err, stderr)
	}
	if out := h.alice.must(t, "/bin/sh", "-c", h.script(t, greetCommand)); out != greeting {
		t.Errorf("%s: the user's container: %q", h.runtime, out)
	}
	h.alice.must(t, "podman", "rm", "--all", "--force", "--time", "0")
	h.alice.nothingLeft(t)
	must(t, "rm", h.alice.conf())
	must(t, "rm", "-r", h.alice.home+"/.local/bin", h.alice.home+"/.local/share/nix-closure")
	for _, file := range manualFiles {
		must(t, "rm", h.alice.home+"/.local/share/"+file)
	}
	h.must(t, "make install")
}

// addsPrecreate: the closure is there with the third hook file too.
func (h *readmeHost) addsPrecreate(t *testing.T, script string) {
	t.Helper()
	h.must(t, script)
	defer must(t, "rm", podmansHooks+"/nix-closure-precreate.json")
	greets(h, t, h.script(t, greetCommand))
}

func (h *readmeHost) resolves(t *testing.T, script string) {
	t.Helper()
	if out := h.must(t, script); strings.TrimSpace(out) != h.paths["/nix/store/…-hello-2.12"] {
		t.Errorf("%s: %q", script, out)
	}
}

// keeps: what a GC root keeps, the collector leaves.
func (h *readmeHost) keeps(t *testing.T, script string) {
	t.Helper()
	path := h.paths["/nix/store/…-hello-2.12"]
	removeAll(t, filepath.Join(storeRoots(), "hello-2.12"))
	h.must(t, script)
	h.must(t, "nix-store --gc")
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// configures: a container that is allowed starts, and another does not. The file stays for
// the command that reads it.
func (h *readmeHost) configures(t *testing.T, file string) {
	t.Helper()
	err := errors.Join(os.MkdirAll(filepath.Dir(configFile), 0o755), os.WriteFile(configFile, []byte(file), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	greets(h, t, h.script(t, greetCommand))
	hello := h.paths["/nix/store/…-hello-2.12"]
	_, _, err = h.sh(strings.ReplaceAll(h.script(t, greetCommand), hello, store["foreign"]))
	if said := lastError(t); err == nil || !strings.Contains(said, "is not allowed here") {
		t.Errorf("%s: %v %s", h.runtime, err, said)
	}
}

// reads: the configuration can be read, and an unknown key in it is an error.
func (h *readmeHost) reads(t *testing.T, script string) {
	t.Helper()
	h.must(t, script)
	before, err := os.ReadFile(configFile)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(configFile, before, 0o644); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(configFile, append([]byte("unknown = 1\n"), before...), 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr, err := h.sh(script)
	if err == nil || !strings.Contains(stderr, `unknown key "unknown"`) {
		t.Errorf("%s: %v %s", script, err, stderr)
	}
	if _, _, err := h.sh(h.script(t, greetCommand)); err == nil {
		t.Errorf("%s: a container starts without a configuration that can be read", h.runtime)
	}
}

func (h *readmeHost) fromTheTree(t *testing.T, script string) {
	t.Helper()
	rest, _ := strings.CutPrefix(h.script(t, greetCommand), "podman run ")
	greets(h, t, strings.Replace(script, "…", rest, 1))
}

// buildProgram builds a store path like nixpkgs' of that name: hello greets, and bash is a
// shell.
func buildProgram(t *testing.T, name string) string {
	t.Helper()
	program, _, _ := strings.Cut(name, "-")
	line := map[string]string{"hello": "echo 'Hello, world!'", "bash": `exec "${0%/*}/busybox" sh "$@"`}[program]
	if line == "" {
		t.Fatalf("the README has a store path that this test cannot build: %s", name)
	}
	return strings.TrimSpace(must(t, "nix-build", "--quiet", "testdata/program.nix",
		"--argstr", "name", name, "--argstr", "line", line, "--out-link", filepath.Join(storeRoots(), name)))
}

// setEngine adds a line to podman's configuration, for the length of a test.
func setEngine(t *testing.T, line string) {
	t.Helper()
	const conf = "/etc/containers/containers.conf"
	before, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(conf, before, 0o644); err != nil {
			t.Error(err)
		}
	})
	text := bytes.Replace(before, []byte("[engine]\n"), []byte("[engine]\n"+line+"\n"), 1)
	if err := os.WriteFile(conf, text, 0o644); err != nil {
		t.Fatal(err)
	}
}
