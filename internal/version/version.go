// SPDX-License-Identifier: Apache-2.0

// Package version says which version this is.
package version

// Version is set by the Makefile.
var Version = "development"
