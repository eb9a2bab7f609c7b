package diaspora

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/globus"
)

func TestHint(t *testing.T) {
	t.Parallel()
	hinted := &Error{Condition: ErrNotFound, Reason: "why", Hint: "do this"}
	for _, try := range []struct {
		err  error
		want string
	}{
		{nil, ""}, {errors.New("x"), ""}, {hinted, "do this"}, {&Error{Condition: ErrNotFound, Reason: "why"}, ""},
		{fmt.Errorf("a: %w", fmt.Errorf("b: %w", hinted)), "do this"},
		{&EventError{Failed: []int{1}, Total: 3, Err: &TopicError{"log", "weather", hinted}}, "do this"},
		{fmt.Errorf("%w, and more", hinted), ""}, // the hint is not at the end
	} {
		if got := Hint(try.err); got != try.want {
			t.Errorf("Hint(%v) = %q, want %q", try.err, got, try.want)
		}
	}
	if got := hinted.Error(); got != "not found: why; do this" {
		t.Errorf("the error is %q", got)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	for _, try := range []struct{ err, want error }{
		{kerr.TopicAuthorizationFailed, ErrPermission}, {kerr.GroupAuthorizationFailed, ErrPermission},
		{kerr.SaslAuthenticationFailed, ErrUnauthenticated}, {kerr.UnknownTopicOrPartition, ErrNotFound}, {kerr.UnknownTopicID, ErrNotFound},
		{kerr.TopicAlreadyExists, ErrConflict}, {kerr.MessageTooLarge, ErrInvalid}, {kerr.InvalidTopicException, ErrInvalid},
		{kerr.NotEnoughReplicas, ErrUnavailable}, {kerr.CoordinatorNotAvailable, ErrUnavailable}, {kerr.UnknownServerError, ErrUnavailable},
		{kgo.ErrRecordTimeout, ErrUnavailable}, {io.EOF, ErrUnavailable}, {&net.OpError{Op: "dial", Err: errors.New("refused")}, ErrUnavailable},
		{globus.ErrUnavailable, ErrUnavailable}, {globus.ErrLoginRequired, ErrUnauthenticated},
		{context.Canceled, context.Canceled}, {context.DeadlineExceeded, context.DeadlineExceeded}, {invalid("x"), ErrInvalid},
	} {
		got := explain(fmt.Errorf("inside: %w", try.err))
		if !errors.Is(got, try.want) || !errors.Is(got, try.err) {
			t.Errorf("explain(%v) = %v, want %v and the cause", try.err, got, try.want)
		}
		if again := explain(got); again != got {
			t.Errorf("explain of what was explained = %v, want the same", again)
		}
	}
	if explain(nil) != nil {
		t.Error("explain(nil) is an error")
	}
}

func TestAdviseOnlyOnce(t *testing.T) {
	t.Parallel()
	f := &Error{Condition: ErrUnauthenticated, Reason: "why"}
	advised := withHint(f, ErrUnauthenticated, "first")
	if got := Hint(withHint(advised, ErrUnauthenticated, "second")); got != "first" {
		t.Errorf("the hint is %q, want the first", got)
	}
	if f.Hint != "" {
		t.Error("the error itself was changed")
	}
	for _, err := range []error{withHint(f, ErrNotFound, "x"), withHint(f, ErrUnauthenticated, ""), withHint(io.EOF, ErrUnauthenticated, "x")} {
		if Hint(err) != "" {
			t.Errorf("%v has a hint", err)
		}
	}
}

func TestEventErrorInWords(t *testing.T) {
	t.Parallel()
	cause := errors.New("why")
	for want, e := range map[string]*EventError{
		"why": {Failed: []int{0}, Total: 1, Err: cause},
		"2 of 5 events failed, the first at index 3: why": {Failed: []int{3, 4}, Total: 5, Err: cause},
	} {
		if got := e.Error(); got != want || !errors.Is(e, cause) {
			t.Errorf("Error() = %q, want %q", got, want)
		}
	}
}
