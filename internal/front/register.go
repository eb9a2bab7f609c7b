package front

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Registration registers the service at Globus Auth: it creates the scope and verifies the host name,
// unless that has been done before.
type Registration struct {
	Admin   *globus.Client // with which the administrator has logged in
	Access  globus.Secret  // the administrator's token, with [globus.ManageProjectsScope]
	Service *globus.Client // the service's own client, with its secret
	Suffix  string         // the last part of the scope
	Host    string         // the host name to verify, or ""
}

// Register returns the scope: with the host name if there is one, otherwise with the ID of the service.
// It may be repeated after an error.
func (r Registration) Register(ctx context.Context) (scope string, err error) {
	id := r.Service.ClientID()
	scope = globus.ScopeOf(id, r.Suffix)
	found, exists, err := r.Admin.FindScope(ctx, r.Access, scope)
	switch {
	case err != nil:
		return "", r.adminError(err)
	case exists && !found.AllowsRefreshToken:
		return "", &diaspora.Error{
			Condition: diaspora.ErrConflict, Reason: fmt.Sprintf("the scope %s exists and forbids refresh tokens, so everybody would have to log in every two days", scope),
			Hint: "choose another suffix with --scope-suffix",
		}
	case !exists:
		_, err := r.Admin.CreateScope(ctx, r.Access, globus.ScopeRegistration{
			ClientID: id, Suffix: r.Suffix, Name: "Log events to Diaspora Streams", Description: "Log events, and read them back, as you.", AllowsRefreshToken: true,
		})
		if err != nil {
			return "", r.adminError(err)
		}
	}
	if r.Host == "" {
		return scope, nil
	}
	return globus.ScopeOf(r.Host, r.Suffix), r.verify(ctx)
}

// verify has Globus Auth verify the host name, unless it is verified already.
func (r Registration) verify(ctx context.Context) error {
	id := r.Service.ClientID()
	owner, err := r.Admin.HostOwner(ctx, r.Access, r.Host)
	switch {
	case err != nil:
		return r.adminError(err)
	case strings.EqualFold(owner, id):
		return nil
	case owner != "":
		return &diaspora.Error{Condition: diaspora.ErrConflict, Reason: fmt.Sprintf("Globus has verified %s for the client %s", r.Host, owner), Hint: "choose another host name with --verify-host"}
	}
	err = r.Service.VerifyHost(ctx, r.Host)
	if why := refusal(err); why != nil {
		name, value := TXTRecord(id, r.Host)
		return &diaspora.Error{
			Condition: diaspora.ErrNotFound, Reason: fmt.Sprintf("Globus has not verified %s: %s", r.Host, detail(why)),
			Hint: fmt.Sprintf(`create the TXT record %s with the value %s, and repeat this command once "dig +short TXT %[1]s" prints it`, name, value),
		}
	}
	return err
}

// TXTRecord returns the DNS record that lets Globus verify a host name for a client.
func TXTRecord(clientID, host string) (name, value string) { return clientID + "." + host, clientID }

// adminError explains an error of a request that only an administrator of the project can make.
func (r Registration) adminError(err error) error {
	why, id := refusal(err), r.Service.ClientID()
	switch {
	case why == nil:
		return err
	case why.Status == http.StatusForbidden && strings.Contains(why.Detail, "30 minutes"):
		return &diaspora.Error{
			Condition: diaspora.ErrPermission, Reason: "register the service at Globus: " + detail(why),
			Hint: "repeat this command, and log in with the identity that administers the project of the client " + id,
		}
	case why.Status == http.StatusForbidden:
		return &diaspora.Error{
			Condition: diaspora.ErrPermission, Reason: "register the service at Globus: you do not administer the project of the client " + id + ": " + detail(why),
			Hint: "log in as an administrator of that project, or have one add you at https://app.globus.org/settings/developers",
		}
	case why.Status == http.StatusNotFound:
		return &diaspora.Error{
			Condition: diaspora.ErrNotFound, Reason: "register the service at Globus: there is no client " + id + ", or you may not see it",
			Hint: "compare globus-client-id with https://app.globus.org/settings/developers",
		}
	case why.Status == http.StatusConflict:
		return &diaspora.Error{Condition: diaspora.ErrConflict, Reason: fmt.Sprintf("create the scope %s: %s", globus.ScopeOf(id, r.Suffix), detail(why)), Hint: "choose another suffix with --scope-suffix"}
	case why.Status == http.StatusBadRequest || why.Status == http.StatusUnprocessableEntity:
		return &diaspora.Error{Condition: diaspora.ErrInvalid, Reason: fmt.Sprintf("create the scope %s: %s", globus.ScopeOf(id, r.Suffix), detail(why)), Hint: "choose another suffix with --scope-suffix"}
	}
	return err
}

// refusal returns the response with which Globus Auth has refused a request. It returns nil if err is
// nil, or says that the request has not been decided or the credentials are wrong.
func refusal(err error) *globus.Error {
	var why *globus.Error
	if !errors.As(err, &why) || why.Status/100 != 4 || why.Status == http.StatusUnauthorized || errors.Is(err, globus.ErrUnavailable) {
		return nil
	}
	return why
}

func detail(why *globus.Error) string {
	if why.Detail == "" {
		return fmt.Sprintf("Globus answers with status %d", why.Status)
	}
	return "Globus answers: " + why.Detail
}

// CheckHostName returns an error for a name that Globus cannot verify.
func CheckHostName(host string) error {
	owner, err := trust.ScopeOwner(globus.ScopeOf(host, "x"))
	if err != nil || uuid.Validate(owner) == nil || owner != host {
		return fmt.Errorf("%q is not a host name such as streams.example.org, in lower case", host)
	}
	return nil
}
