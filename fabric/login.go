package fabric

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
)

// login logs username in at a local Globus Auth. In place of a browser, it opens the authorization page
// with the username as a parameter, so that the page does not ask for one, and follows the redirects.
func login(ctx context.Context, client *globus.Client, secret globus.Secret, username string) (*globus.Login, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	result, err := client.Login(ctx, globus.LoginOptions{
		Scopes:  []string{globusdev.Scope},
		Out:     io.Discard,
		Address: func(address string) (string, error) { return globusdev.WithTicket(secret, address, time.Now()) },
		Getenv: func(name string) string {
			if name == "DISPLAY" {
				return ":0" // makes Login use Browser
			}
			return ""
		},
		Browser: func(address string) error {
			err := visit(ctx, address, username)
			if err != nil {
				cancel(err) // otherwise Login would wait for a user to enter a code
			}
			return err
		},
	})
	if err != nil {
		return nil, fmt.Errorf("log %s in: %w", username, cmp.Or(context.Cause(ctx), err))
	}
	return result, nil
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
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the authorization page answers %s", response.Status)
	}
	return nil
}
