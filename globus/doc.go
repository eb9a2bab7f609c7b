// Package globus is a client for Globus Auth. It logs people and services in, stores their tokens
// on disk, refreshes tokens before they expire, and tells a server whom an access token belongs to.
// It hides the ways in which Globus Auth differs from other OAuth servers, the format of the token
// file, and how programs that share the file take turns. It guarantees that an outage never
// discards a login, and that secrets are never printed. Start reading at [Client].
//
// # Logging in
//
// A [Client] stands for a program that is registered with Globus Auth. [Client.Login] prints a URL
// and starts a browser; if there is no browser, the person pastes a code instead. Globus Auth then
// issues one token for each resource server, that is, for each API that was requested. A [Store]
// keeps the tokens in a file.
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
// A completed login is never lost: if it cannot be saved, Login returns it together with the error.
// [Client.Logout] revokes the tokens and deletes the file.
//
// # Using the tokens
//
// An access token is valid for two days. A [TokenSource] returns one that is valid now:
//
//	source := client.StoredSource(store, "2b9d2f5c-…")
//	token, err := source.Token(ctx)
//
// It refreshes the token before it expires. All programs that use the same token file refresh in
// turn and use each other's results, so it does not matter whether Globus Auth allows a refresh
// token to be used only once. While Globus Auth is unreachable, the source returns the current
// token until that expires. [Client.RefreshSource] starts from a refresh token instead of a file,
// and [Client.ClientCredentialsSource] from the secret of a service.
//
// # Serving
//
// A server asks an [Authenticator] whom a token belongs to:
//
//	auth, err := globus.NewAuthenticator(globus.AuthenticatorConfig{
//		Introspector: client, // with the resource server's ID and secret
//		Issuer:       client.Issuer(),
//		Audience:     "2b9d2f5c-…",
//		Scope:        "https://auth.globus.org/scopes/2b9d2f5c-…/action_all",
//	})
//	info, err := auth.Authenticate(ctx, token)
//
// The Authenticator caches each result for half a minute. During an outage of Globus Auth, it keeps
// accepting tokens that it has accepted before.
//
// A person may have several linked identities. [TokenInfo] has the one that the person signs in as,
// and the set of all. To give permissions to others, a server looks up the identity of a username and
// the members of a group with a [Directory]:
//
//	dir, err := globus.NewDirectory(globus.DirectoryConfig{Client: client})
//	grace, err := dir.Lookup(ctx, "grace@example.org")
//	members, err := dir.GroupMembers(ctx, "fdb38a24-…")
//
// # Errors
//
// Use [errors.Is] to test an error for one of six values. They say what to do. A [Directory] has four
// more, which its comment lists:
//
//	ErrLoginRequired   the refresh token is not valid any more; a person must log in
//	ErrRefused         the access token is not valid for this service
//	ErrUnavailable     the token's state is unknown; keep everything and retry
//	ErrMisconfigured   something other than Globus Auth answers; keep everything, and check the issuer and the network
//	ErrClientRefused   the program's own ID or secret is wrong
//	ErrDenied          the person denied the login
//
// # Secrets
//
// Tokens, codes and client secrets have the type [Secret], which prints as [redacted]. They are
// never part of an error, a diagnostic or a URL. The only file that contains them is the token
// file, which only its owner can read.
package globus
