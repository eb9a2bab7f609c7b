package doctor

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/diaspora-streams/diaspora"
)

// Unclaimed asks the ACL endpoint whether a topic is unclaimed, so that there is no owner to ask
// for access. If so, near is the most similar name of a topic that the caller owns or that is shared with it, or "". Names of
// other topics are never suggested.
func Unclaimed(ctx context.Context, client *diaspora.Client, name string) (near string, free bool) {
	answered := (*diaspora.ProblemError)(nil)
	if _, err := client.Topic(ctx, name); !errors.Is(err, diaspora.ErrNotFound) || !errors.As(err, &answered) {
		return "", false
	}
	topics, err := client.Topics(ctx)
	if err != nil {
		return "", true
	}
	return Near(name, namesOfTopics(slices.Concat(topics.Topics, topics.Shared))), true
}

// Owns asks the ACL endpoint whether the caller owns a topic. If so, and the cluster denies access to it, an operator
// has denied it.
func Owns(ctx context.Context, client *diaspora.Client, name string) bool {
	topic, err := client.Topic(ctx, name)
	if err != nil {
		return false
	}
	who, err := client.Identity(ctx) // operators are shown the topics of others
	return err == nil && who.Subject == topic.Owner
}

func namesOfTopics(topics []diaspora.Topic) (names []string) {
	for _, t := range topics {
		names = append(names, t.Name)
	}
	return names
}

// Near returns the element of names that name is most likely a misspelling of, or "".
func Near(name string, names []string) (near string) {
	most := min(3, max(1, len(name)/3)) // number of letters that may differ
	for _, candidate := range names {
		if d := distance(strings.ToLower(name), strings.ToLower(candidate)); d <= most {
			near, most = candidate, d-1
		}
	}
	return near
}
