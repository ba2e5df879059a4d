// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/sirupsen/logrus"
)

// nriLog puts what NRI's library logs into the log of this program, except its lines about
// each step.
type nriLog struct{ log *logrus.Logger }

func (l nriLog) Debugf(context.Context, string, ...any) {}

func (l nriLog) Infof(context.Context, string, ...any) {}

func (l nriLog) Warnf(_ context.Context, format string, args ...any) { l.log.Warnf(format, args...) }

func (l nriLog) Errorf(_ context.Context, format string, args ...any) { l.log.Errorf(format, args...) }
