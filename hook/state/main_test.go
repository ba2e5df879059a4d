// SPDX-License-Identifier: Apache-2.0

package state

import (
	"os"
	"testing"

	"github.com/nix-closure/nix-closure/internal/settle"
)

func TestMain(m *testing.M) { os.Exit(settle.Run(m.Run)) }
