// SPDX-License-Identifier: Apache-2.0

package testhost

import "strings"

// The annotations by which containerd and CRI-O say what a container is.
const (
	CRIType       = "io.kubernetes.cri.container-type"
	CRIID         = "io.kubernetes.cri.sandbox-id"
	CRIName       = "io.kubernetes.cri.container-name"
	CRINamespace  = "io.kubernetes.cri.sandbox-namespace"
	CRIOType      = "io.kubernetes.cri-o.ContainerType"
	CRIOID        = "io.kubernetes.cri-o.SandboxID"
	CRIOName      = "io.kubernetes.container.name"
	CRIONamespace = "io.kubernetes.pod.namespace"
)

// What becomes of a container that asks for env and mounts the host's whole store.
const (
	ItsOwn  = "env"     // it has the closure of env
	Foreign = "foreign" // it has a closure that only one container of a pod asks for
	Refused = "refused" // it does not start, and the reason names one of the claim's keys
)

// Claim is something that an image or a user says and only some engine may say.
type Claim struct {
	Name   string
	Says   map[string]string // annotations
	Config string            // config.toml
	Want   map[string]string // by the engine that the hook is told; "*" is any other
	Reason string            // what a refusal may say in place of a key; empty: nothing
}

// Outcome is what becomes of a container that an engine runs, by its name for the hook;
// empty: the hook is told none.
func (c Claim) Outcome(engine string) string {
	if want, ok := c.Want[engine]; ok {
		return want
	}
	return c.Want["*"]
}

// Reasons are what the reason of a refusal has, each alone.
func (c Claim) Reasons() []string {
	var all []string
	if c.Reason != "" {
		all = append(all, c.Reason)
	}
	for key := range c.Says {
		all = append(all, key)
	}
	return all
}

// Claims has every annotation that says what a container is, in both dialects. path is a
// store path that the container does not ask for.
func Claims(path string) []Claim {
	const (
		forTeam  = "[[allow]]\nnamespaces = [\"team-a\"]\nroots = [\"/nix/store/*-test-env\"]\n"
		forAll   = "[[allow]]\nroots = [\"/nix/store/*-test-env\"]\n"
		webRoots = "web.nix-closure/roots"
	)
	type m = map[string]string
	never := m{"*": Refused}
	always := m{"*": ItsOwn}
	// somebody is a container's ID, but no container here has it.
	somebody := strings.Repeat("5eed", 16)
	return []Claim{
		{Name: "sandbox, containerd", Says: m{CRIType: "sandbox"}, Want: never},
		{Name: "sandbox, CRI-O", Says: m{CRIOType: "sandbox"}, Want: never},
		{Name: "sandbox, both", Says: m{CRIType: "sandbox", CRIOType: "sandbox"}, Want: never},
		{Name: "sandbox of another ID, containerd", Says: m{CRIType: "sandbox", CRIID: somebody}, Want: never},
		{Name: "sandbox of another ID, CRI-O", Says: m{CRIOType: "sandbox", CRIOID: somebody}, Want: never},
		{Name: "sandbox of no ID", Says: m{CRIType: "sandbox", CRIID: "", CRIOType: "sandbox", CRIOID: ""},
			Want: never},
		{Name: "sandbox and container", Says: m{CRIType: "sandbox", CRIOType: "container"}, Want: never},
		{Name: "container", Says: m{CRIType: "container", CRIOType: "container"}, Want: always},

		{Name: "name, containerd", Says: m{CRIName: "web", webRoots: path},
			Want: m{"*": Refused, "containerd": Foreign}},
		{Name: "name, CRI-O", Says: m{CRIOName: "web", webRoots: path},
			Want: m{"*": Refused, "cri-o": Foreign}},
		{Name: "name, both", Says: m{CRIName: "web", CRIOName: "web", webRoots: path}, Want: never},
		{Name: "no name", Says: m{webRoots: path}, Want: never},
		{Name: "empty name", Says: m{CRIName: "", CRIOName: "", webRoots: path}, Want: never},
		{Name: "name alone, containerd", Says: m{CRIName: "web"},
			Want: m{"*": Refused, "containerd": ItsOwn, "": ItsOwn}},
		{Name: "name alone, CRI-O", Says: m{CRIOName: "web"},
			Want: m{"*": Refused, "cri-o": ItsOwn, "": ItsOwn}},

		{Name: "namespace, containerd", Says: m{CRINamespace: "team-a"}, Config: forTeam,
			Want: m{"*": Refused, "containerd": ItsOwn}},
		{Name: "namespace, CRI-O", Says: m{CRIONamespace: "team-a"}, Config: forTeam,
			Want: m{"*": Refused, "cri-o": ItsOwn}},
		{Name: "namespaces that differ", Says: m{CRINamespace: "team-b", CRIONamespace: "team-a"}, Config: forTeam,
			Want: m{"*": Refused, "cri-o": ItsOwn}, Reason: `namespace "team-b"`},
		{Name: "namespace without need", Says: m{CRINamespace: "team-a", CRIONamespace: "team-b"}, Config: forAll,
			Want: always},
	}
}
