// SPDX-License-Identifier: Apache-2.0

package spec

import "testing"

// Which mount a path is on does not follow from the order or the length of the
// mount points alone.
func TestPlaceOf(t *testing.T) {
	const text = `60 1 8:1 / / rw - ext4 /dev/sda1 rw
22 60 0:21 / /proc rw - proc proc rw
61 60 8:2 /nix /nix rw - ext4 /dev/sdb rw
62 61 8:2 /nix/store /nix/store ro - ext4 /dev/sdb rw
70 60 8:1 /data /covered/deep rw - ext4 /dev/sda1 rw
71 60 0:40 / /covered rw - tmpfs tmpfs rw
80 60 8:3 / /stack rw - ext4 /dev/sdc rw
81 80 8:4 /top /stack rw - ext4 /dev/sdd rw
90 60 0:50 /@home /home rw - btrfs /dev/sde rw
`
	mounts, err := ParseMounts([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]place{
		"/":               {"8:1", "/"},
		"/etc/passwd":     {"8:1", "/etc/passwd"},
		"/proc/1":         {"0:21", "/1"}, // mounted before the root it is on
		"/nix":            {"8:2", "/nix"},
		"/nix/store/x":    {"8:2", "/nix/store/x"},
		"/nix/storeX":     {"8:2", "/nix/storeX"},
		"/covered/deep/x": {"0:40", "/deep/x"},
		"/stack/x":        {"8:4", "/top/x"},
		"/home/user":      {"0:50", "/@home/user"},
	} {
		if got := placeOf(mounts, path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	if got := placeOf(nil, "/x"); got != (place{}) {
		t.Errorf("without mounts: %v", got)
	}
}
