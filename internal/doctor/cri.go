// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nix-closure/nix-closure/internal/engineconfig"
)

// answerTime is how long an engine may take to answer. A healthy one takes some
// milliseconds.
const answerTime = 2 * time.Second

func dialCRI(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// criStatus asks a CRI engine for what it has in force.
func criStatus(ctx context.Context, socket string) (map[string]string, error) {
	connection, err := dialCRI(socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = connection.Close() }()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	status, err := cri.NewRuntimeServiceClient(connection).Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return nil, err
	}
	return status.Info, nil
}

// runtimesOf is what containerd says of its runtimes (crictl info).
func runtimesOf(info map[string]string) (r engineconfig.Runtimes, _ error) {
	text, ok := info["config"]
	if !ok {
		return r, errors.New("it does not say what its configuration is")
	}
	var config struct {
		Containerd struct {
			Default  string `json:"defaultRuntimeName"`
			Runtimes map[string]struct {
				Type                 string         `json:"runtimeType"`
				PodAnnotations       []string       `json:"PodAnnotations"`
				ContainerAnnotations []string       `json:"ContainerAnnotations"`
				Options              map[string]any `json:"options"`
			} `json:"runtimes"`
		} `json:"containerd"`
	}
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		return r, fmt.Errorf("its configuration: %w", err)
	}
	r.Default, r.Handlers = config.Containerd.Default, map[string]engineconfig.RuntimeHandler{}
	for name, h := range config.Containerd.Runtimes {
		binary, _ := h.Options["BinaryName"].(string)
		r.Handlers[name] = engineconfig.RuntimeHandler{
			Type: h.Type, PodAnnotations: h.PodAnnotations, ContainerAnnotations: h.ContainerAnnotations,
			BinaryName: binary, Fields: map[string]any{"options": h.Options},
		}
	}
	return r, nil
}
