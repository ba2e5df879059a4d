// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"math"

	"github.com/nix-closure/nix-closure/internal/plainjson"
)

// parsePlainConfig parses a config.json that is written plainly; see plainjson. It reads the
// fields of configText, and refuses what topLevel refuses.
func parsePlainConfig(text []byte) (c configText, ok bool) {
	p := plainConfig{plainjson.New(text), &c, true}
	// readFields, in this order.
	p.Object(readFields[:], func(i int) {
		switch readFields[i] {
		case "root":
			p.strings([]string{"path"}, &c.Root.Path)
		case "mounts":
			c.Mounts = []mountText{}
			p.Array(p.mount)
		case "annotations":
			c.Annotations = p.Strings()
		case "process":
			p.Object([]string{"user"}, func(int) {
				p.Object([]string{"uid", "gid"}, func(i int) {
					*[]*uint32{&c.Process.User.UID, &c.Process.User.GID}[i] = p.id()
				})
			})
		case "linux":
			p.linux()
		default:
			p.Skip()
		}
	})
	return c, p.End() && p.ok
}

type plainConfig struct {
	*plainjson.Reader
	to *configText
	ok bool
}

// strings reads an object of strings, each to its place.
func (p *plainConfig) strings(names []string, to ...*string) {
	p.Object(names, func(i int) { *to[i] = p.String() })
}

// id reads a user or a group.
func (p *plainConfig) id() uint32 {
	n := p.Int()
	p.ok = p.ok && 0 <= n && n <= math.MaxUint32
	return uint32(n)
}

func (p *plainConfig) mount() {
	var m mountText
	p.Object([]string{"destination", "type", "source", "options"}, func(i int) {
		switch i {
		case 0:
			m.Destination = p.String()
		case 1:
			m.Type = p.String()
		case 2:
			m.Source = p.String()
		case 3:
			m.Options = p.StringArray()
		}
	})
	p.to.Mounts = append(p.to.Mounts, m)
}

func (p *plainConfig) linux() {
	l := &p.to.Linux
	names := []string{"mountLabel", "maskedPaths", "rootfsPropagation", "namespaces", "resources"}
	p.Object(names, func(i int) {
		switch i {
		case 0:
			l.MountLabel = p.String()
		case 1:
			l.MaskedPaths = p.StringArray()
		case 2:
			l.RootfsPropagation = p.String()
		case 3:
			l.Namespaces = []namespaceText{}
			p.Array(func() {
				var n namespaceText
				p.strings([]string{"type", "path"}, &n.Type, &n.Path)
				l.Namespaces = append(l.Namespaces, n)
			})
		case 4:
			p.Object([]string{"memory"}, func(int) {
				p.Object([]string{"limit"}, func(int) { l.Resources.Memory.Limit = p.Int() })
			})
		}
	})
}
