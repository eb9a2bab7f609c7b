package gateway

import "sync/atomic"

// Stats is a snapshot of what a [Gateway] has done.
type Stats struct {
	Connections int // open now
	HalfOpen    int // of these, not signed in yet

	Logins      int64 // first logins and repeated ones
	Refused     int64 // logins refused for good
	Unavailable int64 // logins not possible because the Authenticator could not tell whose they were
	Rejected    int64 // connections closed because of a limit
	BadRequests int64 // connections closed because of what they sent
	Expired     int64 // connections closed because their login had run out
	Revoked     int64 // connections closed because their token or key was refused later on
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
