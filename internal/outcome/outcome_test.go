package outcome

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
)

// TestConditions checks the HTTP status and the exit code of each condition.
func TestConditions(t *testing.T) {
	t.Parallel()
	for _, try := range []struct {
		err          error
		status, exit int
	}{
		{nil, 200, 0}, {errors.New("else"), 500, 1}, {diaspora.ErrInvalid, 400, 2}, {diaspora.ErrUnauthenticated, 401, 3}, {diaspora.ErrNoProfile, 401, 3},
		{globus.ErrLoginRequired, 401, 3}, {globus.ErrRefused, 401, 3}, {globus.ErrDenied, 401, 3}, {diaspora.ErrPermission, 403, 4}, {diaspora.ErrNotFound, 404, 5},
		{diaspora.ErrConflict, 409, 6}, {diaspora.ErrUnavailable, 503, 7}, {globus.ErrUnavailable, 503, 7}, {ErrIncomplete, 500, 8},
		{context.DeadlineExceeded, 504, 10}, {context.Canceled, 499, 130}, {diaspora.ErrClosed, 500, 1},
		{fmt.Errorf("%w: %w", ErrIncomplete, diaspora.ErrPermission), 500, 8}, // the first matching row applies
	} {
		wrapped := try.err
		if wrapped != nil {
			wrapped = fmt.Errorf("outside: %w", &diaspora.EventError{Failed: []int{0}, Total: 2, Err: &diaspora.TopicError{Op: "log", Topic: "weather", Err: try.err}})
		}
		if got := HTTPStatus(wrapped); got != try.status {
			t.Errorf("HTTPStatus(%v) = %d, want %d", wrapped, got, try.status)
		}
		if got := ExitCode(wrapped); got != try.exit {
			t.Errorf("ExitCode(%v) = %d, want %d", wrapped, got, try.exit)
		}
	}
}

// TestExitCodes checks that every exit code has a meaning.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	meant := map[int]bool{}
	for _, c := range ExitCodes {
		if meant[c.Code] || c.Meaning == "" {
			t.Errorf("exit code %d is listed twice, or without a meaning", c.Code)
		}
		meant[c.Code] = true
	}
	used := map[int]bool{0: true, 1: true}
	for _, c := range conditions {
		used[c.exit] = true
	}
	if !maps.Equal(used, meant) {
		t.Errorf("the exit codes are %v, and those with a meaning %v", used, meant)
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	e := &diaspora.Error{Condition: diaspora.ErrNotFound, Reason: "why", Hint: "do this"}
	for _, try := range []struct {
		err        error
		text, hint string
	}{
		{errors.New("x; y"), "x; y", ""},
		{e, "not found: why", "do this"},
		{fmt.Errorf("open: %w", e), "open: not found: why", "do this"},
		{fmt.Errorf("%w (again)", e), "not found: why; do this (again)", ""}, // the hint is not at the end, so it stays in the text and is not shown twice
	} {
		if text, hint := Split(try.err); text != try.text || hint != try.hint {
			t.Errorf("Split(%v) = %q, %q, want %q, %q", try.err, text, hint, try.text, try.hint)
		}
	}
}
