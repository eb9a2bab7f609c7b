package server

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
)

const (
	typeHTML    = "text/html"
	typePlain   = "text/plain"
	typeProblem = "application/problem+json"
)

// negotiate returns the offer (a media type) that the request's Accept header prefers, the first of
// equal ones, or "" if it accepts none (RFC 9110 section 12.5.1).
func negotiate(r *http.Request, offers ...string) string {
	accept := strings.Join(r.Header["Accept"], ",")
	if strings.TrimSpace(accept) == "" {
		return offers[0]
	}
	best, bestQuality := "", 0.0
	for _, offer := range offers {
		if q := quality(accept, offer); q > bestQuality {
			best, bestQuality = offer, q
		}
	}
	return best
}

// quality returns the weight that the most specific matching range of accept gives to offer.
func quality(accept, offer string) float64 {
	kind, _, _ := strings.Cut(offer, "/")
	result, specific := 0.0, 0
	for part := range strings.SplitSeq(accept, ",") {
		rng, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		var s int
		switch rng {
		case offer:
			s = 3
		case kind + "/*":
			s = 2
		case "*/*":
			s = 1
		}
		if s <= specific {
			continue
		}
		q := 1.0
		if raw, ok := params["q"]; ok {
			q, err = strconv.ParseFloat(raw, 64)
			if err != nil || !(q >= 0 && q <= 1) {
				q = 0
			}
		}
		result, specific = q, s
	}
	return result
}

// prefersHTML reports whether the request comes from a browser.
func prefersHTML(r *http.Request) bool {
	return negotiate(r, typeProblem, typeJSON, typePlain, typeHTML) == typeHTML
}
