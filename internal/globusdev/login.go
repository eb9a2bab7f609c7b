package globusdev

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
)

// Errors of [Login].
var (
	ErrSecret = errors.New("this is not the secret of the running stand-in for Globus Auth, which is new at each start")
	ErrNobody = errors.New("the stand-in for Globus Auth has no such user")
)

// Login logs a user in at a running server, which has this secret, without a browser: it opens the authorization page
// itself. username may also be a subject. Of the options, it sets those that concern the browser.
func Login(ctx context.Context, client *globus.Client, secret globus.Secret, username string, opts globus.LoginOptions) (*globus.Login, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	opts.Out = io.Discard
	opts.Address = func(address string) (string, error) { return WithTicket(secret, address, time.Now()) }
	opts.Getenv = func(name string) string {
		if name == "DISPLAY" {
			return ":0" // makes Login use Browser
		}
		return ""
	}
	opts.Browser = func(address string) error {
		err := visit(ctx, address, username)
		if err != nil {
			cancel(err) // otherwise Login would wait for a user to enter a code
		}
		return err
	}
	login, err := client.Login(ctx, opts)
	if err != nil && login == nil {
		return nil, fmt.Errorf("log %s in: %w", username, cmp.Or(context.Cause(ctx), err))
	}
	return login, err
}

// visit opens the authorization page as username, and follows all redirects.
func visit(ctx context.Context, address, username string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	query := u.Query()
	query.Set("dev_user", username)
	u.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusForbidden:
		return ErrSecret
	case http.StatusBadRequest:
		return ErrNobody
	}
	return fmt.Errorf("the authorization page answers %s", response.Status)
}
