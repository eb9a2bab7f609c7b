// Package outcome maps error conditions to HTTP status codes, for the server, and to exit codes, for
// the command. One table defines both, so that they agree. Most conditions are defined in package
// diaspora. Start reading at the table, conditions.
package outcome

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Conditions that only commands know.
var (
	// ErrSpooled says that events are stored in the spool, but not acknowledged yet.
	ErrSpooled = errors.New("events are in the spool only")
	// ErrIncomplete says that some of several events were not acknowledged.
	ErrIncomplete = errors.New("some events were not acknowledged")
)

// conditions are in order of precedence: if an error matches several rows, the first one applies.
var conditions = []struct {
	err    error
	status int
	exit   int
}{
	{ErrIncomplete, http.StatusInternalServerError, 8},
	{diaspora.ErrSpoolFull, http.StatusInsufficientStorage, 9},
	{diaspora.ErrSpoolFailed, http.StatusInsufficientStorage, 9},
	{ErrSpooled, http.StatusServiceUnavailable, 75},
	{diaspora.ErrInvalid, http.StatusBadRequest, 2},
	{diaspora.ErrUnauthenticated, http.StatusUnauthorized, 3},
	{globus.ErrLoginRequired, http.StatusUnauthorized, 3},
	{globus.ErrRefused, http.StatusUnauthorized, 3},
	{globus.ErrClientRefused, http.StatusUnauthorized, 3},
	{globus.ErrDenied, http.StatusUnauthorized, 3},
	{trust.ErrUntrusted, http.StatusUnauthorized, 3},
	{diaspora.ErrNoProfile, http.StatusUnauthorized, 3},
	{diaspora.ErrPermission, http.StatusForbidden, 4},
	{diaspora.ErrNotFound, http.StatusNotFound, 5},
	{diaspora.ErrConflict, http.StatusConflict, 6},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, 10},
	{context.Canceled, 499, 130},
	{diaspora.ErrUnavailable, http.StatusServiceUnavailable, 7},
	{globus.ErrUnavailable, http.StatusServiceUnavailable, 7},
	{globus.ErrMisconfigured, http.StatusInternalServerError, 7},
}

// ExitCodes says what each exit code means, for users.
var ExitCodes = []struct {
	Code    int
	Meaning string
}{
	{0, "done"},
	{1, "any other error"},
	{2, "the request is invalid"},
	{3, "not signed in"},
	{4, "permission denied"},
	{5, "not found"},
	{6, "conflict"},
	{7, "unavailable"},
	{8, "some records failed"},
	{9, "the spool is full or damaged"},
	{10, "timed out"},
	{75, `events are only in the spool (with --require-ack, and from "diaspora spool drain")`},
	{130, `interrupted. After SIGTERM or Ctrl-C, "diaspora produce --watch" exits with 0; with 8 if a file or a line was not logged since it started; or with 130 if events wait for somebody to solve a problem`},
}

// HTTPStatus returns the HTTP status for an error: 200 for nil, and 500 for an error that matches no
// condition. A server should not show the text of such an error to clients.
func HTTPStatus(err error) int {
	if err == nil {
		return http.StatusOK
	}
	for _, c := range conditions {
		if errors.Is(err, c.err) {
			return c.status
		}
	}
	return http.StatusInternalServerError
}

// ExitCode returns the exit code of a command that ends with err. [ExitCodes] says what they mean.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	for _, c := range conditions {
		if errors.Is(err, c.err) {
			return c.exit
		}
	}
	return 1
}

// Split returns the text of an error without the hint at its end, and the hint. It is for callers that
// show the two separately. If the text does not end with a hint, hint is "".
func Split(err error) (text, hint string) {
	hint = diaspora.Hint(err)
	if hint == "" {
		return err.Error(), ""
	}
	return strings.TrimSuffix(err.Error(), "; "+hint), hint
}
