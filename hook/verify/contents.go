// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nix-closure/nix-closure/internal/rootfs"
)

// checkContents compares every file of the closure with what Nix registered: by the hash
// of each path's NAR, which has names, types, links, contents and whether a file can be
// executed, and nothing else.
func (in *inside) checkContents(ctx context.Context, dir *os.File) error {
	if !in.Contents {
		return nil
	}
	different := 0
	for i, info := range in.infos {
		if in.Progress != nil {
			in.Progress(in.ID, i, len(in.infos))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		have, err := narHash(ctx, dir, string(info.Name))
		if errors.Is(err, unix.ENOENT) {
			continue // it is said to be missing
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", in.store.Path(info.Name), err)
		}
		if have == info.NarHash {
			continue
		}
		if different++; different > mostDifferent {
			continue
		}
		hosts, err := narHash(ctx, in.hostStore, string(info.Name))
		if err != nil {
			return fmt.Errorf("reading %s on the host: %w", in.store.Path(info.Name), err)
		}
		if hosts == have {
			in.wrong("`nix-store --verify --check-contents --repair` mends the store",
				"the content of %s is not what Nix registered, on the host neither", in.store.Path(info.Name))
			continue
		}
		in.wrong(stopNow, "the content of %s is not what Nix registered", in.store.Path(info.Name))
	}
	if different > mostDifferent {
		in.wrong(stopNow, "the contents of %d more paths are not what Nix registered", different-mostDifferent)
	}
	in.result.Contents = true
	return nil
}

// narHash is the hash of the NAR of a file, as closure.ParseNarHash returns it.
func narHash(ctx context.Context, dir *os.File, name string) (string, error) {
	w := nar{ctx: ctx, hash: sha256.New()}
	w.text("nix-archive-1")
	if err := w.file(int(dir.Fd()), name); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(w.hash.Sum(nil)), nil
}

// nar writes the form in which Nix hashes a store path (Nix manual, "Nix Archive (NAR)
// format").
type nar struct {
	ctx  context.Context //nolint:containedctx // of one call of narHash
	hash hash.Hash
	buf  []byte
}

// text writes a string: its length, its bytes and what is missing to a multiple of eight.
func (w *nar) text(texts ...string) {
	for _, s := range texts {
		w.length(int64(len(s)))
		_, _ = io.WriteString(w.hash, s)
		w.pad(int64(len(s)))
	}
}

func (w *nar) length(n int64) { _, _ = w.hash.Write(binary.LittleEndian.AppendUint64(nil, uint64(n))) }

func (w *nar) pad(n int64) { _, _ = w.hash.Write(make([]byte, -n&7)) }

func (w *nar) file(dir int, name string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	w.text("(", "type")
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := readlink(dir, name)
		if err != nil {
			return err
		}
		w.text("symlink", "target", target)
	case unix.S_IFREG:
		if err := w.regular(dir, name, st); err != nil {
			return err
		}
	case unix.S_IFDIR:
		if err := w.directory(dir, name); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%s: neither a directory nor a regular file nor a symbolic link", name)
	}
	w.text(")")
	return nil
}

func (w *nar) regular(dir int, name string, st unix.Stat_t) error {
	w.text("regular")
	if st.Mode&0o100 != 0 {
		w.text("executable", "")
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	w.text("contents")
	w.length(st.Size)
	if w.buf == nil {
		w.buf = make([]byte, 256<<10)
	}
	left := st.Size
	for left > 0 {
		n, err := unix.Read(fd, w.buf[:min(int64(len(w.buf)), left)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "read", Path: name, Err: err}
		}
		if n == 0 {
			return &os.PathError{Op: "read", Path: name, Err: io.ErrUnexpectedEOF}
		}
		_, _ = w.hash.Write(w.buf[:n])
		left -= int64(n)
	}
	w.pad(st.Size)
	return nil
}

// mostInDirectory bounds the names in a directory of a store path.
const mostInDirectory = 10_000_000

func (w *nar) directory(dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	names, err := rootfs.Names(fd, mostInDirectory)
	if err != nil {
		return fmt.Errorf("listing %s: %w", name, err)
	}
	slices.Sort(names)
	w.text("directory")
	for _, n := range names {
		w.text("entry", "(", "name", n, "node")
		if err := w.file(fd, n); err != nil {
			return err
		}
		w.text(")")
	}
	return nil
}
