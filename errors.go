package diaspora

import (
	"errors"
	"fmt"
)

// The conditions that a caller can act on. Every error of this package that has
// one of these causes says so to [errors.Is].
var (
	ErrInvalid         = errors.New("invalid")
	ErrUnauthenticated = errors.New("not authenticated")
	ErrPermission      = errors.New("permission denied")
	ErrNotFound        = errors.New("not found")
	ErrConflict        = errors.New("conflict")
	ErrUnavailable     = errors.New("unavailable")
	ErrClosed          = errors.New("closed")
)

// TopicError says which topic an operation failed on. Test its cause with [errors.Is].
type TopicError struct {
	Op    string // what was attempted: "claim", "log", "consume"
	Topic string
	Err   error
}

func (e *TopicError) Error() string { return fmt.Sprintf("%s topic %q: %v", e.Op, e.Topic, e.Err) }
func (e *TopicError) Unwrap() error { return e.Err }
