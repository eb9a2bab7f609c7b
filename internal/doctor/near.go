package doctor

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/aclclient"
)

// Standing is what the ACL endpoint says of a topic, for a caller to whom the cluster denies it. All
// fields are zero if the endpoint does not answer.
type Standing struct {
	// Free means that nobody has claimed the topic, so that there is no owner to ask for access. Near
	// is then the most similar name of a topic that the caller owns or that is shared with the caller,
	// or "". Names of other topics are never suggested.
	Free bool
	Near string

	Foreign bool // somebody else owns it, and the caller has no rights on it
	Own     bool // the caller owns it: the caller has released it, or an operator denies the access
	Shared  bool // somebody else owns it, and the caller has rights on it

	Offered bool // its owner offers it to the caller

	Topic diaspora.Topic // if Own, Shared or Offered
}

// AskStanding asks the ACL endpoint about a topic.
func AskStanding(ctx context.Context, client *diaspora.Client, name string) (s Standing) {
	answered := (*diaspora.ProblemError)(nil)
	topic, err := client.Topic(ctx, name)
	switch {
	case err == nil:
		who, err := client.Identity(ctx)
		if err != nil {
			return s
		}
		s.Topic, s.Own = topic, who.Subject == topic.Owner
		s.Offered = !s.Own && topic.OfferedTo == who.Subject
		may := topic.Read || topic.Write || topic.Manage
		s.Shared, s.Foreign = !s.Own && may, !s.Own && !may // operators are shown the topics of others
	case !errors.As(err, &answered):
	case errors.Is(err, diaspora.ErrPermission):
		s.Foreign = true
	case errors.Is(err, diaspora.ErrNotFound):
		s.Free = true
		if topics, err := client.Topics(ctx); err == nil {
			s.Near = Near(name, namesOfTopics(slices.Concat(topics.Topics, topics.Shared)))
		}
	}
	return s
}

// May reports whether the caller has a right on the topic: "read", "write" or "manage".
func (s Standing) May(right string) bool {
	t := s.Topic
	return t.Manage || right == "read" && t.Read || right == "write" && t.Write
}

// AskOwner returns a hint for a caller who lacks a right on somebody else's topic: to ask for it, or to accept the topic. The command in it
// names the rights that the caller has already, because a share replaces an earlier one.
func (s Standing) AskOwner(name string, caller globus.Identity, right string) string {
	if s.Offered {
		return `it is offered to you: "diaspora topic accept ` + name + `" makes it yours`
	}
	var flags []string
	for _, r := range []string{"read", "write", "manage"} {
		if r == right || right != "manage" && s.May(r) {
			flags = append(flags, "--"+r)
		}
	}
	owner := "its owner"
	if name := strings.Join(strings.Fields(s.Topic.OwnerUsername), " "); name != "" {
		owner += ", " + name + ","
	}
	return "ask " + owner + " to share it with you: " + aclclient.ShareCommand(name, []string{caller.Username, caller.Subject}, flags...)
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
