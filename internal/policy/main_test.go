// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"os"
	"testing"

	"github.com/nix-closure/nix-closure/internal/settle"
)

func TestMain(m *testing.M) { os.Exit(settle.Run(m.Run)) }
