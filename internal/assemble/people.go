package assemble

import (
	"context"
	"errors"
	"fmt"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
)

// people looks up people and groups at Globus. Errors that the person who asked can do something about
// have the conditions of package diaspora. Others are those of [globus.Directory].
type people struct{ directory *globus.Directory }

// Lookup returns the identity that has a username.
func (p people) Lookup(ctx context.Context, username string) (globus.Identity, error) {
	who, err := p.directory.Lookup(ctx, username)
	switch {
	case errors.Is(err, globus.ErrNotFound):
		err = &diaspora.Error{Condition: diaspora.ErrNotFound, Reason: fmt.Sprintf("nobody at Globus has the username %q", username),
			Hint: "a username looks like grace@example.org; that person's `diaspora whoami` prints it"}
	case errors.Is(err, globus.ErrAmbiguous):
		err = &diaspora.Error{Condition: diaspora.ErrConflict, Reason: fmt.Sprintf("several people at Globus have the username %q", username),
			Hint: "name the person by the subject, which `diaspora whoami --subject` prints"}
	case err == nil && who.Status == "closed":
		err = &diaspora.Error{Condition: diaspora.ErrConflict, Reason: fmt.Sprintf("the account %q is closed, so nobody can sign in with it", username),
			Hint: "ask for the username that the person uses now"}
	}
	if err != nil {
		return globus.Identity{}, err
	}
	return who, nil
}

// Identities returns the identities with these IDs, by ID. It leaves unknown ones out.
func (p people) Identities(ctx context.Context, subjects []string) (map[string]globus.Identity, error) {
	return p.directory.Identities(ctx, subjects)
}

// members returns the members of a Globus group, by their subjects.
func (p people) members(ctx context.Context, group string) ([]string, error) {
	list, err := p.directory.GroupMembers(ctx, group)
	var explained *globus.Error
	errors.As(err, &explained)
	switch {
	case errors.Is(err, globus.ErrNotFound):
		return nil, &diaspora.Error{Condition: diaspora.ErrNotFound, Reason: "Globus has no group with this ID", Hint: "the page of the group at app.globus.org shows its ID"}
	case errors.Is(err, globus.ErrMembersHidden), errors.Is(err, globus.ErrTooManyMembers):
		return nil, &diaspora.Error{Condition: diaspora.ErrPermission, Reason: explained.Detail}
	case err != nil:
		return nil, err
	}
	subjects := make([]string, len(list))
	for i, member := range list {
		subjects[i] = member.Subject
	}
	return subjects, nil
}
