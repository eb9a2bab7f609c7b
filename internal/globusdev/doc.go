// Package globusdev is a server that is compatible with Globus Auth, for one machine and for tests.
// It is not Globus: anyone who knows its secret can log in as any of its identities, by picking a
// name from a list. Everything that it issues is marked: tokens begin with dev-at- and dev-rt-,
// codes with dev-code-, and every page has a banner.
//
//	auth, err := globusdev.Open(globusdev.Config{
//		Issuer:   "http://127.0.0.1:9090",
//		Username: "ada",
//	})
//	defer auth.Close()
//	go http.Serve(listener, auth)
//
// It has what our own clients and services use: logins with a browser, refresh tokens, service
// accounts, introspection, revocation, userinfo, lookups of identities, the registration of a service's
// scope and host name, and as much of the Groups API as a service needs to read a group's members. Paths, fields, status codes and peculiarities are
// those of auth.globus.org. So GLOBUS_SDK_SERVICE_URL_AUTH=http://127.0.0.1:9090/ makes a Globus SDK
// log in at this server. The peculiarities include several access tokens from one login, one for each
// resource server, in other_tokens; RS512 without a key ID; and two formats of errors. Where Globus is
// stricter than a standard, this server is too. Otherwise a program could work here and fail with
// Globus.
//
// Start reading at [Server] in globusdev.go, and at the table of routes in http.go.
//
// # Logging in without a browser
//
// The authorize endpoint shows a page on which the user picks an identity. With
// dev_user=ada@example.edu in the query it redirects at once, as if the user had picked that
// identity; with dev_deny=1, as if the user had denied the login. With [Config.Secret], the request
// must contain the secret or a ticket ([WithTicket]). [Server.IssueTokens] issues tokens without
// HTTP.
//
// # Simulating failures
//
// [Server.Expire], [Server.Revoke], [Server.AdvanceClock], [Server.FailNext] and similar methods
// make tokens and the server itself fail on purpose. The same controls are available over HTTP
// under /_dev/, which lists them.
//
// # What is stored
//
// With [Config.Dir] the identities, the clients' secrets, the signing key, and SHA-256 hashes of
// tokens and codes are stored in one file, which only its owner may read. A change is written to
// the file before the response is sent, so tokens stay valid if the process is killed. The tokens
// themselves are never written to disk.
//
// # Who can connect
//
// Requests from other machines are refused, whatever the listener's address. So are requests whose
// Host header is not a name of this machine: a hostile web page sends such requests to read local
// servers through a browser (DNS rebinding). Other users of the machine can connect. With
// [Config.Secret], they get neither codes nor access to the controls.
package globusdev
