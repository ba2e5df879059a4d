// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	device "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	// resourcePrefix and the closure's name are the resource's name.
	resourcePrefix = "nix-closure/"
	// defaultUnits is the usual number of units of a resource. A closure can be shared by
	// any number of containers, but a kubelet counts devices, and each container takes one.
	// The number is above the pods that a node can have: a kubelet's default is 110, and a
	// Linux bridge, on which pods usually are, has at most 1023 ports. The kubelet keeps
	// each unit in memory and writes all of them to a file for each new pod, so the number
	// is not much larger.
	defaultUnits = 1024
	// mostUnits keeps a list of them well below gRPC's limit for a message.
	mostUnits = 100_000
)

// fit is a name that can be a resource's, after the prefix. A CDI device's name may also
// have colons, and may be longer.
// https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
var fit = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// checkName says why a closure's name cannot be a resource's.
func checkName(name string) error {
	if fit.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%q cannot be the name of a resource: that has at most 63 characters, which are letters, "+
		"digits and inner -, _ and .; generate the device under another name", name)
}

// resource serves one named closure to the kubelet: the kubelet finds the socket, asks what
// it is, and then watches how many units there are.
// https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/
type resource struct {
	device.UnimplementedDevicePluginServer
	registration.UnimplementedRegistrationServer

	name, cdiName string // of the resource, and of the device
	units         int
	log           *logrus.Entry
	// refresh has the plugin look again, before a container is promised anything.
	refresh func(context.Context)

	server *grpc.Server // nil: not started
	path   string       // of the socket
	socket os.FileInfo

	mutex sync.Mutex
	state state
	news  chan struct{} // closed when state changes
}

// state is whether pods can have a closure.
type state struct {
	gone  bool  // there is no closure of that name any more
	unfit error // see named
}

func (s state) equal(other state) bool {
	return s.gone == other.gone && fmt.Sprint(s.unfit) == fmt.Sprint(other.unfit)
}

// socketName is the file name of a resource's socket. A name of 63 characters would make the
// path longer than a socket's may be.
func socketName(name string) string {
	return fmt.Sprintf("nix-closure-%.8x.sock", sha256.Sum256([]byte(name)))
}

// listen makes the socket and serves on it. A socket that is there is of a plugin that was
// killed: the directory is this plugin's.
func (r *resource) listen(ctx context.Context, dir string) error {
	path := filepath.Join(dir, socketName(r.name))
	r.path = path
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return err
	}
	// stop removes the socket. If Serve came later, it would remove the one of the next listen.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if r.socket, err = os.Lstat(path); err != nil {
		_ = listener.Close()
		return err
	}
	server := grpc.NewServer()
	device.RegisterDevicePluginServer(server, r)
	registration.RegisterRegistrationServer(server, r)
	r.server = server
	go func() {
		// stop may come first, and takes r.server away.
		if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			r.log.WithField("error", err.Error()).Error("socket cannot be served any more")
		}
	}()
	return nil
}

// listens reports whether the socket is still there.
func (r *resource) listens(dir string) bool {
	if r.server == nil {
		return false
	}
	now, err := os.Lstat(filepath.Join(dir, socketName(r.name)))
	return err == nil && os.SameFile(now, r.socket)
}

// stop ends what listen began, and removes the socket.
func (r *resource) stop() {
	if r.server != nil {
		r.server.Stop()
		r.server = nil
		if now, err := os.Lstat(r.path); err == nil && os.SameFile(now, r.socket) {
			_ = os.Remove(r.path)
		}
	}
}

// set changes the state, and tells the kubelet.
func (r *resource) set(s state) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.news != nil && r.state.equal(s) {
		return
	}
	before, first := r.state, r.news == nil
	r.state = s
	if !first {
		close(r.news)
	}
	r.news = make(chan struct{})
	switch {
	case s.gone:
		r.log.Warn("closure not advertised any more: the file of the named closures does not have it")
	case s.unfit != nil:
		r.log.WithField("error", s.unfit.Error()).Error("closure unhealthy: the node takes no new pods with it")
	case first || before.gone:
		r.log.WithField("units", r.units).Info("closure advertised")
	default:
		r.log.Info("closure healthy again")
	}
}

// get returns the state, and what is closed when that changes.
func (r *resource) get() (state, <-chan struct{}) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.state, r.news
}

// GetInfo says what the socket is. Without an endpoint, the kubelet uses its own path of the
// socket.
func (r *resource) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.DevicePlugin, Name: r.name, SupportedVersions: []string{device.Version},
	}, nil
}

// NotifyRegistrationStatus learns what the kubelet made of it.
func (r *resource) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (
	*registration.RegistrationStatusResponse, error,
) {
	if s.GetPluginRegistered() {
		r.log.Info("registered with the kubelet")
	} else {
		r.log.WithField("error", s.GetError()).Error("the kubelet refuses the resource")
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// GetDevicePluginOptions says that the plugin is not to be asked anything else.
func (r *resource) GetDevicePluginOptions(context.Context, *device.Empty) (*device.DevicePluginOptions, error) {
	return &device.DevicePluginOptions{}, nil
}

// ListAndWatch tells the kubelet about the units, now and after each change.
func (r *resource) ListAndWatch(_ *device.Empty, stream grpc.ServerStreamingServer[device.ListAndWatchResponse]) error {
	for {
		s, changed := r.get()
		if err := stream.Send(&device.ListAndWatchResponse{Devices: r.list(s)}); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		}
	}
}

// list returns the units. A closure that is gone has none, and stays a resource: of one that
// it does not know, a kubelet takes a static pod, and starts it without the closure.
func (r *resource) list(s state) []*device.Device {
	if s.gone {
		return nil
	}
	health := device.Healthy
	if s.unfit != nil {
		health = device.Unhealthy
	}
	all := make([]*device.Device, r.units)
	for i := range all {
		all[i] = &device.Device{ID: strconv.Itoa(i), Health: health}
	}
	return all
}

// Allocate says what containers get: the CDI device of the closure. It looks again first, so
// that no container is promised what the node does not have any more. The kubelet does not
// admit a pod for which this fails, and shows the error.
func (r *resource) Allocate(ctx context.Context, request *device.AllocateRequest) (*device.AllocateResponse, error) {
	r.refresh(ctx)
	s, _ := r.get()
	answer := &device.AllocateResponse{}
	err := s.unfit
	if s.gone {
		err = errors.New("this node has no closure of that name; `nix-closure cdi generate` makes one")
	}
	if len(request.GetContainerRequests()) == 0 && err == nil {
		err = errors.New("the kubelet asks for no container")
	}
	for _, c := range request.GetContainerRequests() {
		if err == nil {
			err = r.checkUnits(c.GetDevicesIds())
		}
		answer.ContainerResponses = append(answer.ContainerResponses,
			&device.ContainerAllocateResponse{CdiDevices: []*device.CDIDevice{{Name: r.cdiName}}})
	}
	if err != nil {
		r.log.WithField("error", err.Error()).Error("pod refused")
		return nil, status.Errorf(codes.FailedPrecondition, "nix-closure: resource %s: %v", r.name, err)
	}
	return answer, nil
}

// checkUnits checks what a container is to get.
func (r *resource) checkUnits(ids []string) error {
	if len(ids) != 1 {
		return fmt.Errorf("a container asks for %d of it; a closure is there or not, so ask for 1", len(ids))
	}
	i, err := strconv.Atoi(ids[0])
	if err != nil || i < 0 || i >= r.units || ids[0] != strconv.Itoa(i) {
		return fmt.Errorf("there is no unit %q", ids[0])
	}
	return nil
}
