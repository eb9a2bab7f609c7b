// Package globus is a client of Globus Auth: it logs people and services in,
// keeps their tokens on disk, refreshes them ahead of time, and tells a server
// who an access token belongs to.
//
// # Logging in
//
// A [Client] stands for a program that is registered with Globus Auth.
// [Client.Login] prints an address and starts a browser; where there is none, the
// person pastes a code. Globus Auth answers with one token for each resource
// server, that is, for each API that was asked for. A [Store] keeps them.
//
//	client, err := globus.New(globus.Config{ClientID: "d1a590a0-…"})
//	store, err := globus.OpenStore("/home/ada/.config/diaspora/tokens/default.json")
//	login, err := client.Login(ctx, globus.LoginOptions{
//		Scopes: []string{"https://auth.globus.org/scopes/2b9d2f5c-…/action_all"},
//		In:     os.Stdin,
//		Out:    os.Stderr,
//		Store:  store,
//	})
//	fmt.Println(login.Identity.Username)
//
// A login that was completed is never lost: if it cannot be saved, Login returns
// it together with the error. [Client.Logout] revokes the tokens and deletes the file.
//
// # Using the tokens
//
// An access token lives for two days. A [TokenSource] yields one that is good now:
//
//	source := client.StoredSource(store, "2b9d2f5c-…")
//	token, err := source.Token(ctx)
//
// It refreshes ahead of expiry. All programs that use the same token file do so
// in turn and see each other's results, so that it does not matter whether Globus
// Auth makes a refresh token worthless by its first use. While Globus Auth cannot be
// reached, the token at hand goes on being served for as long as it lives.
// [Client.RefreshSource] starts from a bare refresh token instead of a file, and
// [Client.ClientCredentialsSource] from a service's own secret.
//
// # Serving
//
// A server asks an [Authenticator] who is calling:
//
//	auth, err := globus.NewAuthenticator(globus.AuthenticatorConfig{
//		Introspector: client, // with the resource server's ID and secret
//		Issuer:       client.Issuer(),
//		Audience:     "2b9d2f5c-…",
//		Scope:        "https://auth.globus.org/scopes/2b9d2f5c-…/action_all",
//	})
//	info, err := auth.Authenticate(ctx, token)
//
// What it says of a token holds for half a minute. Who was known before an outage of
// Globus Auth stays known during it.
//
// # Errors
//
// What follows from an error is told by one of six values, by [errors.Is]:
//
//	ErrLoginRequired   the refresh token is dead; a person must log in
//	ErrRefused         the access token is not good for this
//	ErrUnavailable     nothing is known; keep everything and try again
//	ErrMisconfigured   something else than Globus Auth answers; keep everything, see the issuer and the network
//	ErrClientRefused   the program's own ID or secret is wrong
//	ErrDenied          the person said no
//
// # Secrets
//
// Tokens, codes and client secrets are of type [Secret], which prints as
// [redacted]. They are in no error, diagnostic or URL, and in no file but the
// token file, which only its owner can read.
package globus
