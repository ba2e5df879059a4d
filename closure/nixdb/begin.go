// SPDX-License-Identifier: Apache-2.0

package nixdb

import (
	"context"

	"github.com/nix-closure/nix-closure/closure"
)

// Begin returns at most so many valid store paths whose base name begins with a text,
// sorted.
func (s *Snapshot) Begin(ctx context.Context, text string, most int) ([]closure.BaseName, error) {
	// Every character of a store path is less than 0x7f.
	from := s.store.Dir + "/" + text
	rows, err := s.tx.QueryContext(ctx,
		"SELECT path FROM ValidPaths WHERE path >= ? AND path < ? ORDER BY path LIMIT ?", from, from+"\x7f", most)
	if err != nil {
		return nil, s.failed(err)
	}
	defer rows.Close()
	var all []closure.BaseName
	for rows.Next() {
		var path string
		if err := rows.Scan(&path); err != nil {
			return nil, s.failed(err)
		}
		name, err := s.store.ParseExact(path)
		if err != nil {
			return nil, s.failed(err)
		}
		all = append(all, name)
	}
	if err := rows.Err(); err != nil {
		return nil, s.failed(err)
	}
	return all, s.check()
}
