package fabric

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
)

// login logs username in at a local Globus Auth. The browser that it brings
// names who is logging in, rather than asking, and follows the redirects back.
func login(ctx context.Context, client *globus.Client, secret globus.Secret, username string) (*globus.Login, error) {
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	result, err := client.Login(ctx, globus.LoginOptions{
		Scopes:  []string{globusdev.Scope},
		Out:     io.Discard,
		Address: func(address string) (string, error) { return globusdev.WithTicket(secret, address, time.Now()) },
		Getenv: func(name string) string {
			if name == "DISPLAY" {
				return ":0" // there is a browser: the one below
			}
			return ""
		},
		Browser: func(address string) error {
			err := visit(ctx, address, username)
			if err != nil {
				failed <- err
				cancel()
			}
			return err
		},
	})
	select {
	case cause := <-failed:
		err = cause
	default:
	}
	if err != nil {
		return nil, fmt.Errorf("log %s in: %w", username, err)
	}
	return result, nil
}

// visit opens the authorization page as username would, and follows to the end.
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
