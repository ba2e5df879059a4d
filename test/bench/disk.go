// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
)

// diskSize is enough for a store of a hundred thousand small paths, in bytes.
// The file is sparse.
const diskSize = 8 << 30

// journalled puts an ext4 with a journal on /nix, as hosts have it. Without one,
// as on some virtual machines, ext4 looks at each inode that was deleted in the
// last minute before it makes a file: a benchmark that starts containers without
// a pause, each with a GC root, would measure that.
func journalled(image string) error {
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := f.Truncate(diskSize); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"mkfs.ext4", "-q", "-N", "500000", image},
		{"mount", "-o", "loop", image, "/nix"},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w: %s", command, err, out)
		}
	}
	return nil
}
