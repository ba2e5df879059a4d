// SPDX-License-Identifier: Apache-2.0

module github.com/nix-closure/nix-closure/test

go 1.26.0
