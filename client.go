package diaspora

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/aclclient"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Client talks to the ACL endpoint of a fabric, which manages topics and access keys. Make one with
// [NewClient]; its methods may be called concurrently. They return [ErrInvalid],
// [ErrUnauthenticated], [ErrPermission], [ErrNotFound], [ErrConflict], [ErrUnavailable], ctx's
// error, or an unexpected error. If the ACL endpoint answered with an error, the error is a
// [*ProblemError] as well.
type Client struct {
	cfg  Config
	base *url.URL
	http *aclclient.Client
}

// NewClient returns a client of the ACL endpoint at cfg.URL. It does not use the network. Without
// cfg.TokenSource, only [Client.Discover] works; with cfg.Key instead, [Client.Identity] and
// [Client.Key] work too.
func NewClient(cfg Config) (*Client, error) {
	if cfg.URL == "" {
		return nil, &Error{
			Condition: ErrInvalid,
			Reason:    "configuration: the URL of the fabric's ACL endpoint is not set",
			Hint:      `set DIASPORA_URL, or run "diaspora login URL"`,
		}
	}
	base, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.TokenSource != nil && cfg.Key != (Key{}) {
		return nil, errTwoCredentials
	}
	roots, err := cfg.roots()
	if err != nil {
		return nil, err
	}
	cfg.login = cfg.advice()
	return &Client{cfg: cfg, base: base, http: aclclient.New(aclclient.Config{
		Base:                   base,
		TokenSource:            cfg.TokenSource,
		Key:                    kafka.Key(cfg.Key),
		Roots:                  roots,
		InsecureAllowPlaintext: cfg.InsecureAllowPlaintext,
	})}, nil
}

// Discover fetches the fabric's discovery document. It sends no token, but the document says where
// tokens are sent later. So it is not fetched over plain http from another machine, where anybody
// on the network path could change it.
func (c *Client) Discover(ctx context.Context) (Discovery, error) {
	op := "ask " + c.base.String() + " for its configuration"
	d, err := ask[Discovery](ctx, c, op, "", aclclient.Request{Path: "/.well-known/diaspora", Public: true, Again: true}, nil)
	if f, ok := errors.Unwrap(err).(*Error); ok && f.Condition == ErrUnavailable && f.cause != nil {
		return Discovery{}, f // it names the URL itself; after "ask … for" it would read like an instruction
	}
	if err != nil {
		return Discovery{}, err
	}
	if err := d.validate(); err != nil {
		return Discovery{}, fmt.Errorf("%s: %w", op, err)
	}
	return d, nil
}

// discoverOnce fetches the discovery document and closes the connection. If the fabric is
// unreachable, it returns the document that was remembered from the last time, if there is one.
func (c *Client) discoverOnce(ctx context.Context) (Discovery, error) {
	defer c.closeIdle()
	d, err := c.Discover(ctx)
	if err == nil {
		c.cfg.learn(c.cfg.memory.Name, func(r *remembered) { r.Discovery = &d })
	}
	if !away(err) {
		return d, err
	}
	if known := c.cfg.memory.Recall(c.cfg.memory.Name); known.Discovery != nil {
		c.cfg.diagnostics().Warn("the fabric cannot be asked where its cluster is; going by what it said before", "url", c.cfg.URL, "err", err)
		return *known.Discovery, nil
	}
	return d, err
}

func (c *Client) closeIdle() { c.http.CloseIdle() }

// Identity returns the caller's identity: that of the token, or of the access key's owner. For a
// key, only the Subject is known.
func (c *Client) Identity(ctx context.Context) (globus.Identity, error) {
	var id globus.Identity
	var err error
	if c.cfg.Key != (Key{}) {
		var key AccessKey
		key, err = c.showKey(ctx, "ask whose the access key is", c.cfg.Key.ID)
		id.Subject = key.Owner
	} else {
		id, err = ask[globus.Identity](ctx, c, "ask who is signed in", "", aclclient.Request{Path: "/v1/identity", Again: true}, nil)
	}
	if id.Subject != "" {
		c.cfg.learn(c.cfg.memory.Name, func(r *remembered) { r.Identity = id })
	}
	return id, err
}

// Claim makes the caller the owner of a topic. When it returns, the topic exists and the owner may
// write to it and read from it.
//
// Claiming a topic that the caller already owns changes nothing and succeeds; Topic.Created tells
// whether the topic is new. Claim returns [ErrConflict] if the topic belongs to somebody else, or
// is the caller's and has other settings than the claim, and [ErrInvalid] if the name is malformed.
func (c *Client) Claim(ctx context.Context, claim ClaimRequest) (Topic, error) {
	if err := ValidTopic(claim.Name); err != nil {
		return Topic{}, &TopicError{"claim", err.(*TopicError).Topic, err.(*TopicError).Err}
	}
	// Claiming is idempotent, so it is safe to retry after a lost response.
	return ask(ctx, c, "claim", claim.Name, aclclient.Request{Method: http.MethodPost, Path: "/v1/topics", In: claim, Again: true},
		func(t Topic) string { return about("topic", t.Name == claim.Name) })
}

// Set changes settings of a topic that the caller owns or may manage. It returns the topic before and
// after the change. Its errors are those of [Client.Share].
func (c *Client) Set(ctx context.Context, name string, set TopicSettings) (TopicChange, error) {
	// Setting the same again changes nothing, so it is safe to retry after a lost response.
	return ask(ctx, c, "set", name, aclclient.Request{Method: http.MethodPatch, Path: topicPath(name), In: set, Again: true}, func(change TopicChange) string {
		return about("topic", change.Before.Name == name && change.After.Name == name)
	})
}

// Share gives others rights on a topic, in place of those that they have through an earlier share. The
// caller must own the topic or be allowed to manage it. When it returns, the rights hold. It returns
// [ErrInvalid], [ErrNotFound] if there is no such topic, or nobody with that username,
// [ErrPermission], and [ErrConflict] if the other one is the topic's owner.
func (c *Client) Share(ctx context.Context, name string, with GrantRequest) (Grant, error) {
	return ask(ctx, c, "share", name, aclclient.Request{Method: http.MethodPost, Path: topicPath(name) + "/grants", In: with, Again: true}, func(g Grant) string {
		sameSubject := with.Subject == "" || strings.EqualFold(g.Subject, with.Subject)
		return cmp.Or(granteesFault(g), about("grantee", sameSubject && g.Group == with.Group && g.Public == with.Public))
	})
}

// Unshare takes away the rights that a grantee has on a topic: a subject, "group:" and the ID of a
// Globus group, or "public". The grantee itself may do so as well. It returns [ErrNotFound] if the
// topic is not shared with the grantee.
func (c *Client) Unshare(ctx context.Context, name, grantee string) error {
	if id := strings.TrimPrefix(grantee, "group:"); !isPathPart(id) || !aclclient.IsSubject(id) {
		return &TopicError{"unshare", clip(name), invalid("give a subject, group: and the ID of a Globus group, or public")}
	}
	return c.do(ctx, "unshare", name, aclclient.Request{Method: http.MethodDelete, Path: topicPath(name) + "/grants/" + url.PathEscape(grantee)})
}

// Grants returns with whom a topic is shared. A caller who does not manage the topic gets only the
// grants to itself.
func (c *Client) Grants(ctx context.Context, name string) ([]Grant, error) {
	list, err := ask(ctx, c, "show", name, aclclient.Request{Path: topicPath(name) + "/grants", Again: true},
		func(list GrantList) string { return granteesFault(list.Grants...) })
	return list.Grants, err
}

// Log returns what was done to a topic since it was claimed, oldest first; of very much, the newest. The
// caller must own the topic or be allowed to manage it.
func (c *Client) Log(ctx context.Context, name string) ([]TopicEvent, error) {
	log, err := ask(ctx, c, "show", name, aclclient.Request{Path: topicPath(name) + "/log", Again: true},
		func(log TopicLog) string {
			var grants []Grant
			for _, e := range log.Events {
				if e.Grant != nil {
					grants = append(grants, *e.Grant)
				}
			}
			return granteesFault(grants...)
		})
	return log.Events, err
}

// Readers returns the consumer groups that have read a topic, and how far behind they are. The caller
// must own the topic or be allowed to manage it.
func (c *Client) Readers(ctx context.Context, name string) ([]Reader, error) {
	list, err := ask[ReaderList](ctx, c, "show", name, aclclient.Request{Path: topicPath(name) + "/readers", Again: true}, nil)
	return list.Readers, err
}

// LookUp asks the fabric who has a username at Globus. A topic can be shared with the subject that it
// returns. It returns [ErrNotFound] if nobody has it. In place of a username it takes a subject as well.
func (c *Client) LookUp(ctx context.Context, username string) (globus.Identity, error) {
	bySubject := isPathPart(username) && aclclient.IsSubject(username)
	if !bySubject && !aclclient.IsUsername(username) {
		return globus.Identity{}, fmt.Errorf("look up a username: %w", invalid("this is not a username, such as ada@example.edu"))
	}
	return ask(ctx, c, "look up "+username, "", aclclient.Request{Path: "/v1/identities/" + url.PathEscape(username), Again: true}, func(id globus.Identity) string {
		if id.Subject == "" {
			return "the subject is missing"
		}
		if bySubject {
			return about("subject", strings.EqualFold(id.Subject, username))
		}
		return about("username", strings.EqualFold(id.Username, username))
	})
}

// Transfer offers a topic to another person, who becomes its owner by accepting it. An offer to the
// caller withdraws an earlier one. Only the owner can offer it.
func (c *Client) Transfer(ctx context.Context, name string, to Transfer) (Topic, error) {
	return ask(ctx, c, "transfer", name, aclclient.Request{Method: http.MethodPost, Path: topicPath(name) + "/transfer", In: to, Again: true},
		func(t Topic) string { return about("topic", t.Name == name) })
}

// Accept makes the caller the owner of a topic that its owner has offered. An operator may accept for
// the person to whom it was offered.
func (c *Client) Accept(ctx context.Context, name string) (Topic, error) {
	return c.act(ctx, "accept", name, "/accept")
}

// Retire releases a topic but keeps its events and its name for a day, in which [Client.Restore] takes
// the release back. Until then nobody can use the topic; Topic.Released says when it is deleted.
func (c *Client) Retire(ctx context.Context, name string) (Topic, error) {
	return c.act(ctx, "release", name, "/release")
}

// Restore takes back a release by [Client.Retire].
func (c *Client) Restore(ctx context.Context, name string) (Topic, error) {
	return c.act(ctx, "restore", name, "/restore")
}

// act sends a request without a body about a topic.
func (c *Client) act(ctx context.Context, op, name, path string) (Topic, error) {
	return ask(ctx, c, op, name, aclclient.Request{Method: http.MethodPost, Path: topicPath(name) + path}, func(t Topic) string { return about("topic", t.Name == name) })
}

func topicPath(name string) string { return "/v1/topics/" + url.PathEscape(name) }

// about says that an answer is about another thing than the request, unless it is the right one.
func about(thing string, right bool) string {
	if right {
		return ""
	}
	return "it is about another " + thing
}

// granteesFault says that a share is not with exactly one grantee, or returns "".
func granteesFault(grants ...Grant) string {
	for _, g := range grants {
		grantees := 0
		for _, is := range []bool{g.Subject != "", g.Group != "", g.Public} {
			if is {
				grantees++
			}
		}
		if grantees != 1 {
			return "a share is not with one grantee"
		}
	}
	return ""
}

// Release gives up a topic and deletes its events at once; [Client.Retire] keeps them for a day. It
// returns [ErrNotFound] if there is no such topic, and [ErrPermission] if it belongs to somebody else.
func (c *Client) Release(ctx context.Context, name string) error {
	return c.do(ctx, "release", name, aclclient.Request{Method: http.MethodDelete, Path: topicPath(name)})
}

// Topics returns the topics that the caller owns, those that others share with the caller, and those
// that are public.
func (c *Client) Topics(ctx context.Context) (TopicList, error) {
	return ask[TopicList](ctx, c, "list topics", "", aclclient.Request{Path: "/v1/topics", Again: true}, nil)
}

// Topic returns a topic that the caller owns or has rights on.
func (c *Client) Topic(ctx context.Context, name string) (Topic, error) {
	return ask(ctx, c, "show", name, aclclient.Request{Path: topicPath(name), Again: true},
		func(t Topic) string { return about("topic", t.Name == name) })
}

// isPathPart reports whether text can be a part of a path. A proxy in front of the ACL endpoint may
// resolve dots, or drop an empty part, which leads to another path: ending a share with ".." would
// release the topic.
func isPathPart(text string) bool { return text != "" && text != "." && text != ".." }

// CreateKey creates an access key for the caller. Only its result contains the secret. It returns
// [ErrConflict] if the caller already has a key of that name. After [ErrUnavailable], the key may
// exist although its secret is lost; revoke it.
func (c *Client) CreateKey(ctx context.Context, key AccessKeyRequest) (NewAccessKey, error) {
	return ask[NewAccessKey](ctx, c, "create access key", "", aclclient.Request{Method: http.MethodPost, Path: "/v1/keys", In: key}, nil)
}

// Keys returns the caller's access keys, without their secrets.
func (c *Client) Keys(ctx context.Context) ([]AccessKey, error) {
	list, err := ask[AccessKeyList](ctx, c, "list access keys", "", aclclient.Request{Path: "/v1/keys", Again: true}, nil)
	return list.Keys, err
}

// Key returns one of the caller's access keys, which may have expired or been revoked. A caller
// that signs in with an access key may ask for all keys of the same owner.
func (c *Client) Key(ctx context.Context, id string) (AccessKey, error) {
	return c.showKey(ctx, "show access key", id)
}

func (c *Client) showKey(ctx context.Context, op, id string) (AccessKey, error) {
	if !isPathPart(id) {
		return AccessKey{}, fmt.Errorf("%s: %w", op, invalid("no access key has this ID"))
	}
	return ask(ctx, c, op, "", aclclient.Request{Path: "/v1/keys/" + url.PathEscape(id), Again: true, Key: true},
		func(key AccessKey) string { return about("access key", key.ID == id) })
}

// RevokeKey revokes one of the caller's access keys. Nobody can sign in with it any more, and open
// connections that use it are closed soon. Revoking it again succeeds.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	if !isPathPart(id) {
		return fmt.Errorf("revoke access key: %w", invalid("no access key has this ID"))
	}
	return c.do(ctx, "revoke access key", "", aclclient.Request{Method: http.MethodDelete, Path: "/v1/keys/" + url.PathEscape(id), Again: true})
}

// Block blocks a subject from the fabric; the caller must be an operator. The fabric then rejects
// all tokens and access keys of the subject, and soon closes its open connections. Blocking again
// changes nothing. An operator cannot be blocked: Block returns [ErrConflict].
func (c *Client) Block(ctx context.Context, block BlockRequest) (Blocked, error) {
	return ask(ctx, c, "block", "", aclclient.Request{Method: http.MethodPost, Path: "/v1/admin/blocked", In: block, Again: true},
		func(b Blocked) string { return about("subject", b.Subject == block.Subject) })
}

// Unblock ends the block of a subject; the caller must be an operator. It returns [ErrNotFound] if
// the subject is not blocked.
func (c *Client) Unblock(ctx context.Context, subject string) error {
	if !isPathPart(subject) {
		return fmt.Errorf("unblock: %w", invalid("nobody has this subject"))
	}
	return c.do(ctx, "unblock", "", aclclient.Request{Method: http.MethodDelete, Path: "/v1/admin/blocked/" + url.PathEscape(subject)})
}

// Blocked returns the subjects that are blocked; the caller must be an operator.
func (c *Client) Blocked(ctx context.Context) ([]Blocked, error) {
	list, err := ask[BlockedList](ctx, c, "list blocked subjects", "", aclclient.Request{Path: "/v1/admin/blocked", Again: true}, nil)
	return list.Blocked, err
}

// ProblemError is an error with which the ACL endpoint answered. Test its cause with [errors.Is].
type ProblemError struct {
	Problem
	condition error
}

func (e *ProblemError) Error() string {
	if e.Detail != "" {
		return e.Detail
	}
	return e.Title
}

func (e *ProblemError) Unwrap() error { return e.condition }

// ask sends a request and returns the answer, unless a text in it does not have the form of its field,
// or fault finds something else wrong with it; fault may be nil. op is the operation, for errors; with a
// topic, only its verb.
func ask[T any](ctx context.Context, c *Client, op, topic string, r aclclient.Request, fault func(T) string) (T, error) {
	var answer, none T
	if r.Out = &answer; fault != nil {
		r.Fault = func() string { return fault(answer) }
	}
	if err := c.do(ctx, op, topic, r); err != nil {
		return none, err // use no part of an answer that is wrong
	}
	return answer, nil
}

// do sends a request, and converts its error into one of this package. It does not send the name of a topic
// that no topic can have, because that could lead to another path of the ACL endpoint.
func (c *Client) do(ctx context.Context, op, topic string, r aclclient.Request) (err error) {
	if strings.HasPrefix(r.Path, topicPath("")) && !kafka.IsTopic(topic) {
		return &TopicError{op, clip(topic), invalid("no cluster has a topic of this name")}
	}
	if c.cfg.Key != (Key{}) && !r.Public && !r.Key {
		err = c.personNeeded()
	} else if err = c.http.Do(ctx, r); err == nil {
		return nil
	}
	if e := (*aclclient.Error)(nil); errors.As(err, &e) && e.Problem != nil {
		problem := &ProblemError{Problem: Problem(*e.Problem), condition: sentinels[e.Condition]}
		hint := problem.Hint
		if e.Condition == kafka.Unauthenticated {
			hint = c.cfg.login // only we know where the credential came from
		}
		return &Error{Reason: problem.Error(), Hint: hint, cause: problem}
	} else if e != nil {
		err = &Error{Condition: sentinels[e.Condition], Reason: e.Reason, Hint: e.Hint, cause: e.Err}
	}
	err = withHint(explain(err), ErrUnauthenticated, c.cfg.login)
	if topic != "" {
		return &TopicError{op, clip(topic), err}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// personNeeded is the error for operations that need a person's login instead of an access key.
func (c *Client) personNeeded() error {
	reason := "this takes the login of a person, and an access key signs in"
	hint := fmt.Sprintf(`run "diaspora login %s"`, c.base)
	if from := c.cfg.origin; from != "" {
		reason += " (" + from + ")"
		if from == fromKeyID {
			from += " and DIASPORA_KEY_SECRET"
		}
		hint = fmt.Sprintf(`do it where you are logged in; or here, unset %s and run "diaspora login %s"`, from, c.base)
	}
	return &Error{Condition: ErrUnauthenticated, Reason: reason, Hint: hint}
}
