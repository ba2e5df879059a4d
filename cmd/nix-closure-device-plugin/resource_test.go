// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	device "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func TestCheckName(t *testing.T) {
	long := strings.Repeat("x", 63)
	for _, name := range []string{"a", "0", "hello", "Hello", "hello-2.12_x", "a.b", long} {
		if err := checkName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "a:b", "-a", "a-", ".a", "a.", "_a", "a_", "a/b", "a b", "a\n", "ä",
		long + "x"} {
		if err := checkName(name); err == nil {
			t.Errorf("%q can be the name of a resource", name)
		}
	}
}

// A path has room for a socket of whatever name.
func TestSocketName(t *testing.T) {
	name := socketName(strings.Repeat("x", 63))
	if dir := "/var/lib/k0s/kubelet/plugins_registry/nix-closure/"; len(dir)+len(name) > 107 {
		t.Errorf("%s%s is too long", dir, name)
	}
	if other := socketName("x"); other == name || len(other) != len(name) {
		t.Errorf("%s and %s", name, other)
	}
}

func testResource() *resource {
	log := logrus.New()
	log.SetOutput(io.Discard)
	r := &resource{
		name: "nix-closure/hello", cdiName: "nix-closure/closure=hello", units: 3,
		refresh: func(context.Context) {}, log: log.WithField("resource", "nix-closure/hello"),
	}
	r.set(state{})
	return r
}

// A resource may be stopped before its server has begun to serve.
func TestStopAtOnce(t *testing.T) {
	dir := t.TempDir()
	for range 100 {
		r := testResource()
		if err := r.listen(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		r.stop()
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestAllocate(t *testing.T) {
	for _, c := range []struct {
		name       string
		state      state
		containers [][]string // units
		want       string     // the error
	}{
		{name: "one container", state: state{}, containers: [][]string{{"0"}}},
		{name: "two containers", state: state{}, containers: [][]string{{"0"}, {"2"}}},
		{name: "not valid", state: state{unfit: errors.New("it is not valid")}, containers: [][]string{{"0"}},
			want: "it is not valid"},
		{name: "gone", state: state{gone: true}, containers: [][]string{{"0"}}, want: "no closure of that name"},
		{name: "no container", state: state{}, want: "for no container"},
		{name: "no unit", state: state{}, containers: [][]string{{}}, want: "asks for 0 of it"},
		{name: "two units", state: state{}, containers: [][]string{{"0"}, {"1", "2"}}, want: "asks for 2 of it"},
		{name: "another unit", state: state{}, containers: [][]string{{"3"}}, want: `no unit "3"`},
		{name: "a negative unit", state: state{}, containers: [][]string{{"-1"}}, want: `no unit "-1"`},
		{name: "a unit by another name", state: state{}, containers: [][]string{{"+1"}}, want: `no unit "+1"`},
		{name: "no number", state: state{}, containers: [][]string{{"x"}}, want: `no unit "x"`},
	} {
		r := testResource()
		r.refresh = func(context.Context) { r.set(c.state) }
		request := &device.AllocateRequest{}
		for _, units := range c.containers {
			request.ContainerRequests = append(request.ContainerRequests,
				&device.ContainerAllocateRequest{DevicesIds: units})
		}
		got, err := r.Allocate(t.Context(), request)
		if c.want != "" {
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), c.want) || got != nil {
				t.Errorf("%s: %v %v, want %q", c.name, got, err, c.want)
			}
			continue
		}
		if err != nil || len(got.GetContainerResponses()) != len(c.containers) {
			t.Errorf("%s: %v %v", c.name, got, err)
		}
		for _, response := range got.GetContainerResponses() {
			devices := response.GetCdiDevices()
			if len(devices) != 1 || devices[0].GetName() != "nix-closure/closure=hello" ||
				len(response.GetMounts())+len(response.GetDevices())+len(response.GetEnvs())+
					len(response.GetAnnotations()) > 0 {
				t.Errorf("%s: %v", c.name, response)
			}
		}
	}
}

// Each change of the state is told, and only changes are.
func TestListAndWatch(t *testing.T) {
	dir := t.TempDir()
	r := testResource()
	if err := r.listen(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.stop)
	path := filepath.Join(dir, socketName(r.name))
	connection, err := grpc.NewClient("passthrough:///"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	info, err := registration.NewRegistrationClient(connection).GetInfo(t.Context(), &registration.InfoRequest{})
	if err != nil || info.GetType() != "DevicePlugin" || info.GetName() != "nix-closure/hello" ||
		info.GetEndpoint() != "" || !cmp.Equal(info.GetSupportedVersions(), []string{"v1beta1"}) {
		t.Errorf("%v %v", info, err)
	}
	client := device.NewDevicePluginClient(connection)
	watch, err := client.ListAndWatch(t.Context(), &device.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want ...string) {
		t.Helper()
		answer, err := watch.Recv()
		var got []string
		for _, d := range answer.GetDevices() {
			got = append(got, d.GetID()+" "+d.GetHealth())
		}
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("%q %v, want %q", got, err, want)
		}
	}
	next("0 Healthy", "1 Healthy", "2 Healthy")
	r.set(state{})
	r.set(state{unfit: errors.New("not valid")})
	next("0 Unhealthy", "1 Unhealthy", "2 Unhealthy")
	r.set(state{unfit: errors.New("not valid")})
	r.set(state{gone: true})
	next()
	r.set(state{})
	next("0 Healthy", "1 Healthy", "2 Healthy")

	// What the plugin does not do, it refuses.
	if _, err := client.PreStartContainer(t.Context(),
		&device.PreStartContainerRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("PreStartContainer: %v", err)
	}
	if _, err := client.GetPreferredAllocation(t.Context(),
		&device.PreferredAllocationRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("GetPreferredAllocation: %v", err)
	}

	if !r.listens(dir) {
		t.Error("it does not listen")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if r.listens(dir) {
		t.Error("it listens on a socket that is not there")
	}
}
