// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nix-closure/nix-closure/test/testhost"
)

// remembering is a way by which podman comes to the hook, and whether that lasts.
type remembering struct {
	name    string
	options []string // of podman, when it makes the container
	lasts   bool
}

// rememberings has the three ways for each runtime. The hook files have to be installed for
// one of them, and for the others they may not be.
func rememberings(runtime string) (installed, others []remembering) {
	return []remembering{{"installed hook files", []string{"--runtime", runtime}, true}},
		[]remembering{
			{"--hooks-dir", []string{"--runtime", runtime, "--hooks-dir", *bin + "/hooks.d"}, false},
			{"the wrapper as --runtime", []string{"--runtime", wrapper()}, true},
		}
}

// podman forgets --hooks-dir: a container that it starts again has no hook, and sees all
// that it mounts. What the README recommends lasts. Should podman remember the option one
// day, this says so, and the README can be mended.
func TestStartedAgain(t *testing.T) {
	for _, runtime := range runtimes {
		become(t, runtime)
		installed, others := rememberings(runtime)
		for _, r := range others {
			t.Run(runtime+"/"+r.name, func(t *testing.T) { checkStartedAgain(t, r) })
		}
		for _, r := range installed {
			t.Run(runtime+"/"+r.name, func(t *testing.T) {
				install(t)
				checkStartedAgain(t, r)
			})
		}
	}
}

// checkStartedAgain fails unless a container sees its closure alone when it is made, and, if
// that lasts, whenever it is started again.
func checkStartedAgain(t *testing.T, r remembering) {
	t.Helper()
	onHost, err := os.ReadDir(storeDir)
	if err != nil {
		t.Fatal(err)
	}
	own := len(closureOf(t, store["env"]))
	again := len(onHost)
	if r.lasts {
		again = own
	}
	run := func(args ...string) string {
		return strings.TrimSpace(must(t, "podman", append(r.options, append([]string{"run"}, args...)...)...))
	}
	count := func(id string) int {
		return len(strings.Fields(execute(t, id, store["env"]+"/bin/ls", "-A", storeDir)))
	}
	asks := append(flags(roots(store["env"])), wholeStore...)

	id := run(append(asks, "--detach", bareImage, store["env"]+"/bin/sleep", "600")...)
	t.Cleanup(func() { remove(t, id) })
	if got := count(id); got != own {
		t.Errorf("podman run: the store has %d names, want %d", got, own)
	}
	must(t, "podman", "stop", "--time", "0", id)
	must(t, "podman", "start", id)
	if got := count(id); got != again {
		t.Errorf("podman start: the store has %d names, want %d", got, again)
	}
	must(t, "podman", "restart", "--time", "0", id)
	if got := count(id); got != again {
		t.Errorf("podman restart: the store has %d names, want %d", got, again)
	}
	remove(t, id)

	// A restart policy. The container writes how many names it sees, and fails.
	volume := t.TempDir()
	script := `shopt -s dotglob; names=(/nix/store/*); echo ${#names[@]} >>/volume/counts; exit 3`
	policy := []string{"--detach", "--restart", "on-failure:2", "-v", volume + ":/volume", bareImage}
	id = run(slices.Concat(asks, policy, []string{store["env"] + "/bin/bash", "-c", script})...)
	t.Cleanup(func() { remove(t, id) })
	var counts []string
	for range 200 {
		text, _ := os.ReadFile(volume + "/counts")
		if counts = strings.Fields(string(text)); len(counts) == 3 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	want := []string{strconv.Itoa(own), strconv.Itoa(again), strconv.Itoa(again)}
	if fmt.Sprint(counts) != fmt.Sprint(want) {
		t.Errorf("with a restart policy the store has %q names, want %q", counts, want)
	}
	remove(t, id)
	nothingLeft(t)
}

// podmanService is podman's socket, for the length of a test.
func podmanService(t *testing.T) *http.Client {
	t.Helper()
	socket := testhost.Dir() + "/podman.sock"
	service := exec.Command("podman", "--hooks-dir", *bin+"/hooks.d", "--runtime", "runc",
		"system", "service", "--time", "0", "unix://"+socket)
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := service.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = service.Wait()
		removeAll(t, socket)
	})
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	for range 200 {
		answer, err := client.Get("http://podman/_ping")
		if err == nil {
			if err := answer.Body.Close(); err != nil {
				t.Fatal(err)
			}
			return client
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("podman makes no socket")
	return nil
}

// Docker's API of podman's socket drops annotations, so that the README's canary starts;
// podman's own does not. Should podman take them one day, this says so.
func TestSocketDropsAnnotations(t *testing.T) {
	client, image := podmanService(t), ordinaryImage(t)
	post := func(path string, body any) (status int, answer string) {
		t.Helper()
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Post("http://podman"+path, "application/json", strings.NewReader(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(said)
	}
	canary := roots("/nix/store/canary")
	for _, c := range []struct {
		api  string
		body object
		hook bool
	}{
		{"/v1.41", object{"Image": image, "Cmd": []string{"/bin/true"}, "HostConfig": object{"Annotations": canary}},
			false},
		{"/v4.0.0/libpod", object{"image": image, "command": []string{"/bin/true"}, "annotations": canary}, true},
	} {
		status, said := post(c.api+"/containers/create", c.body)
		var made struct{ ID string }
		if err := json.Unmarshal([]byte(said), &made); err != nil || status != http.StatusCreated {
			t.Fatalf("%s: %d %s", c.api, status, said)
		}
		t.Cleanup(func() { remove(t, made.ID) })
		status, said = post(c.api+"/containers/"+made.ID+"/start", nil)
		said = strings.ReplaceAll(said, `\"`, `"`) // it is JSON
		if refused := strings.Contains(said, canaryReason); refused != c.hook ||
			(status == http.StatusNoContent) == c.hook {
			t.Errorf("%s: %d %s", c.api, status, said)
		}
	}
	nothingLeft(t)
}
