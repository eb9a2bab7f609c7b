// Package globus is a client of Globus Auth: it logs people and services in,
// keeps their tokens on disk, refreshes them ahead of time, and tells a server
// who an access token belongs to.
package globus
