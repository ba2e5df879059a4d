// SPDX-License-Identifier: Apache-2.0

// Package confine restricts this process, and what it becomes, by Landlock
// (landlock(7)): no namespace and no mount is made, and no privilege is needed.
package confine

import (
	"errors"
	"fmt"
	"os"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"github.com/nix-closure/nix-closure/closure"
)

// Rules are what is allowed. Everything else of what this kernel's Landlock knows is
// refused.
type Rules struct {
	Store   closure.Store
	Closure closure.Closure // to be read and executed
	Read    []string        // files and directories with what is in them
	Write   []string        // the same, and to be read
	Connect []uint16        // ports
	// BestEffort: also where the kernel cannot refuse all that it should.
	BestEffort bool
}

// enough is the version of Landlock that refuses what is promised: files with truncation
// and ioctl, TCP, abstract sockets and signals (Linux 6.12). What later versions know is
// taken where it is there: named sockets (9), UDP (10).
const enough = 6

const (
	readFile  = ll.AccessFSReadFile
	readDir   = readFile | ll.AccessFSReadDir
	writeFile = readFile | ll.AccessFSWriteFile | ll.AccessFSTruncate
	writeDir  = readDir | writeFile | ll.AccessFSRemoveDir | ll.AccessFSRemoveFile | ll.AccessFSMakeDir |
		ll.AccessFSMakeReg | ll.AccessFSMakeSock | ll.AccessFSMakeFifo | ll.AccessFSMakeSym
)

// Apply restricts this process, for good. When it returns without an error, the rules
// are in force, or, with BestEffort, as many as the kernel knows, and never none.
func (r Rules) Apply() error {
	version, err := ll.LandlockGetABIVersion()
	if err != nil || version < 1 {
		return fmt.Errorf("this kernel has no Landlock, or it is not switched on (lsm=): nothing would be confined: %w",
			err)
	}
	if version < enough && !r.BestEffort {
		return fmt.Errorf("this kernel's Landlock is version %d, and before version %d (Linux 6.12) it cannot refuse "+
			"all that this promises; --best-effort takes what it can", version, enough)
	}
	rules, err := r.rules()
	if err != nil {
		return err
	}
	// Where the kernel has less than the newest version, the library leaves out what it
	// has not; that it has enough was seen above.
	if err := landlock.V11.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("restricting this process: %w", err)
	}
	return nil
}

func (r Rules) rules() ([]landlock.Rule, error) {
	var rules []landlock.Rule
	for _, name := range r.Closure.Names {
		path := r.Store.Path(name)
		st, err := os.Lstat(path)
		if err != nil {
			return nil, err
		}
		switch {
		case st.IsDir():
			rules = append(rules, landlock.RODirs(path))
		case st.Mode().IsRegular():
			rules = append(rules, landlock.ROFiles(path))
		}
		// A rule follows a symbolic link, and might allow what is not in the closure. What
		// is, has a rule of its own.
	}
	for _, list := range []struct {
		paths     []string
		dir, file landlock.AccessFSSet
	}{{r.Read, readDir, readFile}, {r.Write, writeDir, writeFile}} {
		for _, path := range list.paths {
			st, err := os.Stat(path)
			if err != nil {
				return nil, err
			}
			access := list.file
			if st.IsDir() {
				access = list.dir
			}
			rules = append(rules, landlock.PathAccess(access, path))
		}
	}
	for _, port := range r.Connect {
		if port == 0 {
			return nil, errors.New("port 0 is none to connect to")
		}
		rules = append(rules, landlock.ConnectTCP(port), landlock.ConnectSendUDP(port))
	}
	if len(r.Connect) > 0 {
		// Before it sends, a UDP socket gets a port of its own from the kernel.
		rules = append(rules, landlock.BindUDP(0))
	}
	return rules, nil
}
