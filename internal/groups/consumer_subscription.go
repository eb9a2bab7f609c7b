package groups

import (
	"errors"
	"regexp"
	"regexp/syntax"
	"slices"
	"time"
)

// consumerRefresh is how often a member's subscription is resolved again, because its rights may
// have changed. A member that has lost the right to describe a topic keeps the topic for at most
// this time plus one heartbeat interval.
const consumerRefresh = 10 * time.Second

// consumerPattern is a regular expression to which members are subscribed.
type consumerPattern struct {
	re      *regexp.Regexp // nil if it is invalid
	names   []string       // topics that match
	version uint64         // the group's topicsVersion when names was computed
}

// maxPatternSize bounds the size of a compiled regular expression, and thereby its memory and run
// time. Nested repetitions, as in (.{0,30}){0,30}, make a large program from a short expression.
const maxPatternSize = 5_000

var errPatternSize = errors.New("expression too large")

// compile compiles a regular expression, unless it is empty or already compiled. An empty
// expression means that there is none.
func (g *consumerGroup) compile(expr string) error {
	if g.patterns[expr] != nil || expr == "" {
		return nil
	}
	parsed, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		var bad *syntax.Error
		if errors.As(err, &bad) {
			return errors.New(bad.Code.String()) // without the expression, as in Kafka
		}
		return err
	}
	if patternSize(parsed) > maxPatternSize {
		return errPatternSize
	}
	// The expression has to match the whole name.
	re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
	if err != nil {
		return err
	}
	g.patterns[expr] = &consumerPattern{re: re}
	return nil
}

// patternSize estimates the number of instructions of the compiled expression.
// It stops counting soon after maxPatternSize.
func patternSize(re *syntax.Regexp) int {
	size := 1 + len(re.Rune)
	for _, sub := range re.Sub {
		size += patternSize(sub)
		if size > maxPatternSize {
			return size
		}
	}
	if re.Op == syntax.OpRepeat {
		size *= max(re.Min, re.Max, 1) + 1
	}
	return size
}

// matches returns the names of the topics that match the expression.
func (g *consumerGroup) matches(expr string, topics Topics) []string {
	if expr == "" {
		return nil
	}
	if err := g.compile(expr); err != nil {
		// It was valid when the member sent it, possibly for an older version of this package.
		g.patterns[expr] = &consumerPattern{}
	}
	p := g.patterns[expr]
	if p.re != nil && p.version != g.topicsVersion {
		p.names = nil
		for _, name := range topics.Names() {
			if p.re.MatchString(name) {
				p.names = append(p.names, name)
			}
		}
		p.version = g.topicsVersion
	}
	return p.names
}

// topicsChanged makes the next heartbeats process topics that were created or deleted, or that have
// more partitions.
func (g *consumerGroup) topicsChanged() { g.topicsVersion++ }

// refresh resolves the subscription of m, with the rights of the caller that sends its heartbeat.
// It also resolves those of all other members with the same principal, because they have the same
// rights. It reports whether the topics of m, and those of other members, have changed.
//
// If each heartbeat resolved only its own member, a new topic would first be assigned to one member
// alone. The group would then rebalance once for each of the others.
func (g *consumerGroup) refresh(now time.Time, m *consumerMember, who Caller, topics Topics) (own, others bool) {
	var last *consumerMember
	for _, x := range g.members {
		if x.principal != m.principal {
			continue
		}
		changed := false
		if last != nil && last.regex == x.regex && slices.Equal(last.names, x.names) {
			changed = g.setTopics(x, last.topics)
		} else {
			changed = g.resolve(x, who, topics)
		}
		if x == m {
			own = changed
		} else {
			others = others || changed
		}
		x.version, x.refreshed = g.topicsVersion, now
		last = x
	}
	return own, others
}

// resolve sets the topics of a member: those to which it is subscribed, that
// exist, and that it may describe. It reports whether they have changed.
func (g *consumerGroup) resolve(m *consumerMember, who Caller, topics Topics) bool {
	var found [][16]byte
	for _, names := range [][]string{m.names, g.matches(m.regex, topics)} {
		for _, name := range names {
			if id, _, ok := topics.ByName(name); ok && who.mayDescribe(name) {
				found = append(found, id)
			}
		}
	}
	slices.SortFunc(found, compareTopics)
	return g.setTopics(m, slices.Compact(found))
}

func (g *consumerGroup) setTopics(m *consumerMember, found [][16]byte) bool {
	changed := !slices.Equal(m.topics, found)
	m.topics = found // even if equal, so that members with equal subscriptions share one slice
	if changed {
		g.changedParts[m.id] = true
	}
	return changed
}

// forgetPatterns removes the patterns to which no member is subscribed any more.
func (g *consumerGroup) forgetPatterns() {
	if len(g.patterns) == 0 {
		return
	}
	used := make(map[string]bool)
	for _, m := range g.members {
		used[m.regex] = true
	}
	for expr := range g.patterns {
		if !used[expr] {
			delete(g.patterns, expr)
		}
	}
}
