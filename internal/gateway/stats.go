package gateway

import "sync/atomic"

// Stats counts what a [Gateway] has done.
type Stats struct {
	Connections int // open now
	HalfOpen    int // of these, how many are not signed in yet

	Logins  int64 // first logins and repeated ones on the same connection
	Refused int64 // logins refused for good
	// Logins that failed because the Authenticator could not tell which identity the credentials
	// belong to.
	Unavailable int64
	Rejected    int64 // connections closed because of a limit
	BadRequests int64 // connections closed because of a malformed or forbidden request
	Expired     int64 // connections closed because their login had expired
	Revoked     int64 // connections closed because their token or key was revoked
}

type counters struct {
	logins, refused, unavailable, rejected, badRequests, expired, revoked atomic.Int64
}

// Stats returns a snapshot.
func (g *Gateway) Stats() Stats {
	total, halfOpen := g.limits.counts()
	return Stats{
		Connections: total,
		HalfOpen:    halfOpen,
		Logins:      g.counters.logins.Load(),
		Refused:     g.counters.refused.Load(),
		Unavailable: g.counters.unavailable.Load(),
		Rejected:    g.counters.rejected.Load(),
		BadRequests: g.counters.badRequests.Load(),
		Expired:     g.counters.expired.Load(),
		Revoked:     g.counters.revoked.Load(),
	}
}
