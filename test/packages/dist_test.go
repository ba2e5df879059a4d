// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Whoever builds the same sources has the same bytes: also somebody else's umask, locale
// and time zone in another directory, without git.
func TestReproducible(t *testing.T) {
	t.Parallel()
	sums := string(read(t, dist(t, "SHA256SUMS")))
	other := t.TempDir()
	must(t, "sh", "-c", `tar -C "$1" --exclude=./bin --exclude=./.git -c . | tar -x -C "$2"`, "sh", repository, other)
	// As git archive writes it.
	when := must(t, "tar", "--utc", "--full-time", "-tvf", dist(t, "*-amd64.tar.gz"))
	when = strings.Join(strings.Fields(when)[3:5], " ")
	epoch := must(t, "date", "--utc", "--date", when+" UTC", "+%s")
	file := filepath.Join(other, "packaging/commit-time")
	if err := os.WriteFile(file, []byte(epoch), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `umask 077; exec make -C "$1" dist`, "sh", other)
	cmd.Env = append(os.Environ(), "TZ=Asia/Tokyo", "LC_ALL=tr_TR.UTF-8", "GOFLAGS=-buildvcs=auto", "GOAMD64=v2")
	if stdout, stderr, err := run(cmd); err != nil {
		t.Fatalf("make dist: %v\n%s%s", err, stdout, stderr)
	}
	if got := string(read(t, filepath.Join(other, "bin/dist/SHA256SUMS"))); got != sums {
		t.Errorf("here\n%selsewhere\n%s", sums, got)
	}
}

// Git archive writes the time of the commit where make dist reads it.
func TestCommitTime(t *testing.T) {
	dir := t.TempDir()
	must(t, "mkdir", dir+"/packaging")
	must(t, "cp", repository+"/.gitattributes", dir)
	must(t, "cp", repository+"/packaging/commit-time", dir+"/packaging")
	git := func(args ...string) string {
		t.Helper()
		options := []string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@example.org"}
		return must(t, "git", append(options, args...)...)
	}
	git("init", "--quiet")
	git("add", ".")
	git("commit", "--quiet", "--message=m")
	git("archive", "--output", dir+"/archive.tar", "HEAD")
	want := git("log", "-1", "--format=%ct")
	if got := must(t, "tar", "-xOf", dir+"/archive.tar", "packaging/commit-time"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// SHA256SUMS names all files, and sha256sum finds one that was changed.
func TestSums(t *testing.T) {
	dir := filepath.Join(*bin, "dist")
	sums := read(t, dir+"/SHA256SUMS")
	var named []string
	for line := range bytes.Lines(sums) {
		named = append(named, string(bytes.Fields(line)[1]))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, e := range entries {
		if e.Name() != "SHA256SUMS" {
			want = append(want, e.Name())
		}
	}
	slices.Sort(named)
	if !slices.Equal(named, want) || len(want) != 6+len(programs) {
		t.Errorf("SHA256SUMS names %q, and there are %q", named, want)
	}
	check := exec.Command("sha256sum", "--check", "--strict", "--quiet")
	check.Dir, check.Stdin = dir, bytes.NewReader(sums)
	if stdout, stderr, err := run(check); err != nil {
		t.Errorf("%v %s%s", err, stdout, stderr)
	}
	changed := bytes.Replace(sums, sums[:1], []byte{'0' + (sums[0]-'0'+1)%8}, 1)
	check = exec.Command("sha256sum", "--check", "--strict", "--quiet")
	check.Dir, check.Stdin = dir, bytes.NewReader(changed)
	if _, _, err := run(check); err == nil {
		t.Error("a wrong sum is found right")
	}
}

// unpack unpacks a package, and returns the directory with its programs.
func unpack(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	switch filepath.Ext(file) {
	case ".deb":
		must(t, "dpkg-deb", "--extract", file, dir)
	case ".rpm":
		must(t, "sh", "-c", `rpm2archive - <"$1" | tar -xz -C "$2"`, "sh", file, dir)
	default:
		must(t, "tar", "-x", "--strip-components=1", "-C", dir, "-f", file)
		return dir + "/bin"
	}
	return dir + "/usr/bin"
}

// In each package are the programs of its architecture. They are static, and the same in
// each kind of package. The SBOMs name the modules that are in them, and no other.
func TestPrograms(t *testing.T) {
	for _, arch := range []struct {
		deb, rpm string
		machine  elf.Machine
	}{{"amd64", "x86_64", elf.EM_X86_64}, {"arm64", "aarch64", elf.EM_AARCH64}} {
		first := map[string][]byte{}
		for _, pattern := range []string{
			"*_" + arch.deb + ".deb", "*." + arch.rpm + ".rpm", "*-" + arch.deb + ".tar.gz",
		} {
			dir := unpack(t, dist(t, pattern))
			for _, program := range programs {
				path := filepath.Join(dir, program)
				f, err := elf.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				interpreter := func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }
				if f.Machine != arch.machine || slices.ContainsFunc(f.Progs, interpreter) {
					t.Errorf("%s: %s is for %v, static: %v", pattern, program, f.Machine,
						!slices.ContainsFunc(f.Progs, interpreter))
				}
				text := read(t, path)
				if first[program] == nil {
					first[program] = text
					checkSBOM(t, program, path)
				} else if !bytes.Equal(text, first[program]) {
					t.Errorf("%s has another %s", pattern, program)
				}
				if here, err := filepath.Abs(repository); err != nil || bytes.Contains(text, []byte(here)) {
					t.Errorf("%s: %s names the directory of the build %v", pattern, program, err)
				}
			}
		}
	}
}

func checkSBOM(t *testing.T, program, path string) {
	t.Helper()
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"std": info.GoVersion}
	for _, m := range info.Deps {
		want[m.Path] = m.Version
	}
	var bom struct {
		BOMFormat  string
		Components []struct{ Name, Version string }
	}
	version := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dist(t, "*-amd64.tar.gz")), "nix-closure-"),
		"-linux-amd64.tar.gz")
	if err := json.Unmarshal(read(t, dist(t, program+"-"+version+".cdx.json")), &bom); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range bom.Components {
		got[c.Name] = c.Version
	}
	if bom.BOMFormat != "CycloneDX" || !maps.Equal(got, want) {
		t.Errorf("the SBOM of %s has %v, and the program %v", program, got, want)
	}
}

// The tar.gz is for /usr/local: install finds what it needs there, and takes it out again.
func TestTar(t *testing.T) {
	d := newDebian(t)
	d.failsOpen()
	before := d.files()
	d.mustType("tar -x -C /usr/local --strip-components=1 -f nix-closure-0.1.0-linux-amd64.tar.gz")
	d.mustType("nix-closure install podman")
	d.failsClosed()
	units := must(t, "grep", "-rh", "^ExecStart=", d.dir+"/usr/local/lib/systemd/system")
	if strings.Count(units, "\n") != strings.Count(units, "=/usr/local/bin/nix-closure") {
		t.Errorf("units for /usr/local: %s", units)
	}
	d.must("nix-closure", "install", "--uninstall", "podman")
	d.failsOpen()
	if len(d.changed(before)) == 0 {
		t.Error("nothing was installed")
	}
}
