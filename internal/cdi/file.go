// SPDX-License-Identifier: Apache-2.0

package cdi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/nix-closure/nix-closure/closure"
	"github.com/nix-closure/nix-closure/internal/atomicfile"
)

// File is a CDI specification with devices of Kind. It keeps what another program wrote,
// and refuses what it could not write back.
type File struct {
	path  string
	store closure.Store
	spec  specs.Spec
	// commented: the file has comments, which are lost if it is written again.
	commented bool
}

// version is the newest that podman 4.3.1 reads.
const version = "0.5.0"

// List returns the devices of a file, in the file's order. The file may be a link, as the
// files of a NixOS system are. No file: fs.ErrNotExist.
func List(path string, store closure.Store) ([]Device, error) {
	f, err := Read(path, store)
	if err != nil {
		return nil, err
	}
	return f.Devices(), nil
}

// Read reads a file. It fails for a file that engines would not read either, and for one
// of another kind.
func Read(path string, store closure.Store) (*File, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := &File{path: path, store: store}
	if err := f.parse(text); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// readOrNew is Read, or a File without devices if there is none.
func readOrNew(path string, store closure.Store) (*File, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &File{path: path, store: store, spec: specs.Spec{Version: version, Kind: Kind}}, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file, but a link that another program made, such as NixOS; "+
			"add the device there, or name another file", path)
	}
	if err != nil {
		return nil, err
	}
	f, err := Read(path, store)
	if err == nil && f.commented {
		err = fmt.Errorf("%s: has comments, which would be lost; remove them, or name another file", path)
	}
	return f, err
}

func (f *File) parse(text []byte) error {
	if err := f.parseDocument(text); err != nil {
		return err
	}
	read, err := cdi.ParseSpec(text)
	if errors.Is(err, io.EOF) || err == nil && read == nil {
		return errors.New("is empty")
	}
	if err != nil {
		return err
	}
	if read.Kind != Kind {
		return fmt.Errorf("has devices of kind %q, not %q", read.Kind, Kind)
	}
	f.spec = *read
	return validate(text)
}

// parseDocument refuses a second document, which engines do not read and which would be
// lost.
func (f *File) parseDocument(text []byte) error {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document, more yaml.Node
	if err := decoder.Decode(&document); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return errors.New("has more than one YAML document; engines read the first one only")
	}
	f.commented = commented(&document)
	return nil
}

func commented(n *yaml.Node) bool {
	return n.HeadComment+n.LineComment+n.FootComment != "" || slices.ContainsFunc(n.Content, commented)
}

// validate is the CDI module's own validation, which engines do when they read a file. It
// writes to no file system, because a reader may have none that it can write to.
func validate(text []byte) error {
	fd, err := unix.MemfdCreate("nix-closure.json", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "nix-closure.json")
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return err
	}
	// JSON and YAML are read by the same parser.
	_, err = cdi.ReadSpec(fmt.Sprintf("/proc/self/fd/%d", fd), 0)
	return err
}

// Devices are the devices of the file, in its order.
func (f *File) Devices() []Device {
	var devices []Device
	for _, d := range f.spec.Devices {
		device := parseDevice(f.store, d)
		// What a container gets for every device of the file, it gets with this one.
		if device.Trouble == nil && !isEmpty(f.spec.ContainerEdits) {
			device = Device{Name: d.Name, Trouble: errors.New("the file has edits for all its devices")}
		}
		devices = append(devices, device)
	}
	return devices
}

func (f *File) index(name string) int {
	return slices.IndexFunc(f.spec.Devices, func(d specs.Device) bool { return d.Name == name })
}

// Set adds a device, or replaces the one of its name. It does not replace what this program
// does not understand.
func (f *File) Set(d Device) error {
	if err := parser.ValidateDeviceName(d.Name); err != nil {
		return err
	}
	i := f.index(d.Name)
	if i < 0 {
		f.spec.Devices = append(f.spec.Devices, d.edits(f.store))
		return nil
	}
	if old := parseDevice(f.store, f.spec.Devices[i]); old.Trouble != nil {
		return fmt.Errorf("%s: device %s was written by another program: %w; take another name",
			f.path, d.Name, old.Trouble)
	}
	f.spec.Devices[i] = d.edits(f.store)
	return nil
}

// Remove removes a device.
func (f *File) Remove(name string) error {
	i := f.index(name)
	if i < 0 {
		return fmt.Errorf("%s has no device %s", f.path, name)
	}
	f.spec.Devices = slices.Delete(f.spec.Devices, i, i+1)
	return nil
}

// text is the file as it is written.
func (f *File) text() (text []byte, err error) {
	if filepath.Ext(f.path) == ".yaml" {
		text, err = yaml.Marshal(f.spec)
	} else {
		text, err = json.MarshalIndent(f.spec, "", "  ")
		text = append(text, '\n')
	}
	if err == nil {
		err = validate(text)
	}
	return text, err
}

// write writes the file, or removes one that has no device left, which no engine reads.
func (f *File) write() error {
	if len(f.spec.Devices) == 0 {
		err := os.Remove(f.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	text, err := f.text()
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	// Engines read the file again whenever it is written.
	if old, err := os.ReadFile(f.path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return atomicfile.WriteReadable(f.path, text)
}

func isEmpty(e specs.ContainerEdits) bool { return reflect.ValueOf(e).IsZero() }
