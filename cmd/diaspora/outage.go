package main

// outageWatch tells the person once that the cluster is away, and once that it is back.
type outageWatch struct {
	env  *env
	seen int // how often in a row it was away
}

// toldAfter keeps a single failed attempt to connect from being news.
const toldAfter = 2

// see takes note of how the cluster is: err is why it cannot be reached, or nil.
// detail says what that means.
func (w *outageWatch) see(err error, detail func() string) {
	if err == nil {
		if w.seen >= toldAfter {
			w.env.warn("the cluster is back")
		}
		w.seen = 0
		return
	}
	if w.seen++; w.seen == toldAfter {
		text, _ := explanation(err)
		w.env.warn("%s; %s", text, detail())
	}
}
