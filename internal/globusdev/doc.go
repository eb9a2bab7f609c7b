// Package globusdev is a server that speaks Globus Auth's dialect, for one
// machine and for tests. It is not Globus: whoever knows its secret can be anybody it
// knows, by picking a name from a list. Everything it hands out says so: tokens
// begin with dev-at- and dev-rt-, codes with dev-code-, and every page
// carries a banner.
//
//	auth, err := globusdev.Open(globusdev.Config{
//		Issuer: "http://127.0.0.1:9090",
//		Seed:   globusdev.DefaultSeed("ada"),
//	})
//	defer auth.Close()
//	go http.Serve(listener, auth)
//
// The paths, fields, status codes and oddities are those of auth.globus.org, so
// that GLOBUS_SDK_SERVICE_URL_AUTH=http://127.0.0.1:9090/ points a Globus SDK at
// it: several access tokens from one login, one for each resource server, in
// other_tokens; RS512 without a key ID; two shapes of error; a bare array for
// dependent tokens. Where Globus is stricter than a standard, so is this server,
// lest something works here that would not work there.
//
// # Logging in without a browser
//
// The authorize endpoint shows a page to pick an identity from. With
// dev_user=ada@example.edu in the query it redirects at once, as if that
// identity had been picked; with dev_deny=1, as if the login had been refused. With
// [Config.Secret], the request has to show the secret or a ticket ([WithTicket]).
// [Server.IssueTokens] leaves HTTP out altogether.
//
// # Making things go wrong
//
// [Server.Expire], [Server.Revoke], [Server.AdvanceClock], [Server.FailNext] and their
// kin make tokens and the server itself misbehave on purpose. The same can be had
// over HTTP under /_dev/, which lists itself.
//
// # What is kept
//
// With [Config.Dir] the identities, clients, consents, the signing key, and
// SHA-256 hashes of tokens and codes are kept in one file, which only its owner
// may read. An answer is sent after the file has what it says, so tokens stay good
// when the process is killed. Tokens themselves are nowhere on disk.
//
// # Who may connect
//
// Requests from other machines, and requests whose Host header is not a name of
// this machine, are refused, whatever the listener: the second is what a hostile web
// page uses to read local servers through a browser (DNS rebinding). Other users of the
// machine can connect; with [Config.Secret], they get neither codes nor controls.
package globusdev
