// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"sync"

	"github.com/containerd/nri/pkg/api"
)

// An answer takes some milliseconds, unless the file system of a mount's source does not
// respond. Then it keeps a thread, for as long as the pod's author wants. So the pending
// answers are limited for each pod and each namespace, and no tenant takes the place of
// another.
const (
	podLimit       = 2
	namespaceLimit = 10
	hostLimit      = 100
)

// pending counts the answers that are not ready yet. Its zero value is ready for use.
type pending struct {
	mutex sync.Mutex
	// of has the counts of pods, namespaces and the host; none is zero.
	of map[owner]int
}

// owner is a pod, a namespace, or the host.
type owner struct{ kind, id string }

// begin counts an answer for a container of the pod, until end is called. It fails if a
// limit is reached.
func (p *pending) begin(pod *api.PodSandbox) (end func(), _ error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	limits := []struct {
		owner owner
		limit int
		name  string
	}{
		{owner{"pod", pod.GetId()}, podLimit, "pod " + pod.GetNamespace() + "/" + pod.GetName()},
		{owner{"namespace", pod.GetNamespace()}, namespaceLimit, "namespace " + pod.GetNamespace()},
		{owner{kind: "host"}, hostLimit, "this host"},
	}
	for _, l := range limits {
		if n := p.of[l.owner]; n >= l.limit {
			return nil, fmt.Errorf("%d container starts of %s wait for volumes whose file system does not respond, "+
				"which is the limit of a %s; repair the volumes, or delete the pods that the plugin's log names",
				n, l.name, l.owner.kind)
		}
	}
	if p.of == nil {
		p.of = map[owner]int{}
	}
	for _, l := range limits {
		p.of[l.owner]++
	}
	return func() {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		for _, l := range limits {
			if p.of[l.owner]--; p.of[l.owner] == 0 {
				delete(p.of, l.owner)
			}
		}
	}, nil
}
