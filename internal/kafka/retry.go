package kafka

import (
	"context"
	"errors"
	"net"

	"github.com/diaspora-streams/diaspora/internal/backoff"
)

// Repeats is how often a request is repeated if it fails for a temporary reason.
const Repeats = 8

// Repeat calls do. If its error is [Temporary], Repeat calls it again after a pause, up to [Repeats]
// times.
func Repeat(ctx context.Context, do func() error) error {
	return backoff.Retry(ctx, Repeats, Temporary, do)
}

// Temporary reports whether the same request may succeed later. The end of a context does not count,
// because it is the caller's decision.
func Temporary(err error) bool {
	condition, _ := Explain(err)
	return condition == Unavailable && !ContextEnded(err)
}

// ContextEnded reports whether err is the error of a context that has ended. For the timeouts of
// package net, it returns false, although they match [context.DeadlineExceeded].
func ContextEnded(err error) bool {
	var network *net.OpError
	return !errors.As(err, &network) && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
}
