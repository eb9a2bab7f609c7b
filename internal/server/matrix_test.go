package server_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/server"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// matrixActors are the columns of the matrix. All requests are about a topic of the owner that is
// shared with the manager, the writer, the reader and with a Globus group, in which the member is;
// except those of the public reader, which are about a public topic of the owner. The share
// with the expired reader has ended. An operator has blocked another manager of the topic.
var matrixActors = []string{"owner", "manager", "writer", "reader", "public", "member", "expired", "stranger", "blocked", "operator", "anonymous"}

const (
	lab      = "5d2c4a51-2f6b-4c11-9d7e-3a1c5b7e9fff" // a Globus group
	labGroup = "group:" + lab
	jsonBody = "application/json"
	formBody = "application/x-www-form-urlencoded"
)

// matrixRow is a request, and the status that each actor gets. A status followed by "=" is that of a
// success that changes nothing. All other successes of a method other than GET change something.
//
// In the path and in the body, {name} is the topic, {new} a new name, {reader} and {self} are subjects,
// {key} is an access key of the owner, {username} its username, {banned} a subject that is blocked and
// {nobody} one that is not, {unknown} one that Globus does not know; {token}, {id} and {secret} are the actor's own token and access key.
type matrixRow struct {
	route  string // pattern of the route
	about  string // what tells the rows of one route apart, or ""
	topic  string // "", "offered" to the reader, or "retired"
	path   string // if it is not that of the route
	body   string
	status string // by column
}

var matrix = []matrixRow{
	//                                                                             owner manager writer reader public member expired stranger blocked operator anonymous
	{route: "GET /{$}", path: "/", status: "                                          200  200     200    200    200    200    200     200      200     200      200"},
	{route: "GET /acl", status: "                                                     200  200     200    200    200    200    200     200      200     200      200"},
	{route: "POST /acl", body: "subject={self}&token={token}&topic={new}", status: "  201  201     201    201    201    201    201     201      403     201      401"},
	{route: "POST /acl", about: "the topic", body: "subject={self}&token={token}&topic={name}",
		status: "                                                                     200= 409     409    409    409    409    409     409      403     409      401"},
	{route: "GET /assets/{file}", path: "/assets/style.css", status: "                200  200     200    200    200    200    200     200      200     200      200"},
	{route: "GET /v1/identity", status: "                                             200  200     200    200    200    200    200     200      403     200      401"},
	{route: "POST /v1/topics", body: `{"name":"{new}"}`, status: "                    201  201     201    201    201    201    201     201      403     201      401"},
	{route: "POST /v1/topics", about: "the topic", body: `{"name":"{name}"}`, status: "200= 409     409    409    409    409    409     409      403     409      401"},
	{route: "GET /v1/topics", status: "                                               200  200     200    200    200    200    200     200      403     200      401"},
	{route: "GET /v1/topics/{name}", status: "                                        200  200     200    200    200    200    403     403      403     200      401"},
	{route: "GET /v1/topics/{name}", about: "retired", topic: "retired", status: "    200  403     403    403    403    403    403     403      403     200      401"},
	{route: "DELETE /v1/topics/{name}", status: "                                     204  403     403    403    403    403    403     403      403     403      401"},
	{route: "DELETE /v1/topics/{name}", about: "retired", topic: "retired", status: " 204  403     403    403    403    403    403     403      403     403      401"},
	{route: "PATCH /v1/topics/{name}", body: `{"retention_ms":3600000}`, status: "    200  200     403    403    403    403    403     403      403     403      401"},
	{route: "PATCH /v1/topics/{name}", about: "retired", topic: "retired", body: `{"retention_ms":3600000}`,
		status: "                                                                     409  403     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/grants", body: `{"subject":"{nobody}","read":true}`,
		status: "                                                                     200  200     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/grants", about: "with oneself", body: `{"subject":"{self}","manage":true,"expires":"2040-01-01T00:00:00Z"}`,
		status: "                                                                     409  200     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/grants", about: "by username", body: `{"username":"grace@example.org","read":true}`,
		status: "                                                                     200  200     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/grants", about: "unknown", body: `{"subject":"{unknown}","read":true}`,
		status: "                                                                     404  404     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/grants", about: "retired", topic: "retired", body: `{"subject":"{nobody}","read":true}`,
		status: "                                                                     409  409     403    403    403    403    403     403      403     403      401"},
	{route: "GET /v1/topics/{name}/grants", status: "                                 200  200     200    200    200    200    403     403      403     200      401"},
	{route: "GET /v1/topics/{name}/log", status: "                                    200  200     403    403    403    403    403     403      403     200      401"},
	{route: "GET /v1/topics/{name}/readers", status: "                                200  200     403    403    403    403    403     403      403     200      401"},
	{route: "DELETE /v1/topics/{name}/grants/{grantee}", path: "/v1/topics/{name}/grants/{reader}",
		status: "                                                                     204  204     403    204    403    403    403     403      403     403      401"},
	{route: "DELETE /v1/topics/{name}/grants/{grantee}", about: "one's own", path: "/v1/topics/{name}/grants/{self}",
		status: "                                                                     404  204     204    204    404    404    404     404      403     404      401"},
	{route: "DELETE /v1/topics/{name}/grants/{grantee}", about: "the group", path: "/v1/topics/{name}/grants/" + labGroup,
		status: "                                                                     204  204     403    403    403    403    403     403      403     403      401"},
	{route: "DELETE /v1/topics/{name}/grants/{grantee}", about: "public", path: "/v1/topics/{name}/grants/public",
		status: "                                                                     404  404     403    403    403    403    403     403      403     403      401"},
	{route: "DELETE /v1/topics/{name}/grants/{grantee}", about: "retired", topic: "retired", path: "/v1/topics/{name}/grants/{reader}",
		status: "                                                                     409  409     403    409    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/transfer", body: `{"subject":"{nobody}"}`, status: "200 403     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/transfer", about: "unknown", body: `{"subject":"{unknown}"}`,
		status: "                                                                     404  403     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/transfer", about: "to oneself", topic: "offered", body: `{"subject":"{self}"}`,
		status: "                                                                     200  403     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/transfer", about: "retired", topic: "retired", body: `{"subject":"{nobody}"}`,
		status: "                                                                     409  403     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/accept", status: "                                403  403     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/accept", about: "offered", topic: "offered", status: "403 403  403    200    403    403    403     403      403     200      401"},
	{route: "POST /v1/topics/{name}/release", status: "                               200  403     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/release", about: "retired", topic: "retired", status: "200= 403 403   403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/restore", status: "                               409  403     403    403    403    403    403     403      403     403      401"},
	{route: "POST /v1/topics/{name}/restore", about: "retired", topic: "retired", status: "200 403 403    403    403    403    403     403      403     403      401"},
	{route: "GET /v1/identities/{username}", status: "                                200  200     200    200    200    200    200     200      403     200      401"},
	{route: "POST /v1/keys", body: `{"name":"{new}","read":true}`, status: "          201  201     201    201    201    201    201     201      403     201      401"},
	{route: "POST /v1/keys", about: "to read the topic", body: `{"name":"{new}","topics":["{name}"],"read":true}`,
		status: "                                                                     201  201     403    201    201    201    403     403      403     403      401"},
	{route: "POST /v1/keys", about: "to write to the topic", body: `{"name":"{new}","topics":["{name}"],"write":true}`,
		status: "                                                                     201  201     201    403    403    403    403     403      403     403      401"},
	{route: "GET /v1/keys", status: "                                                 200  200     200    200    200    200    200     200      403     200      401"},
	{route: "GET /v1/keys/{id}", path: "/v1/keys/{key}", status: "                    200  404     404    404    404    404    404     404      403     404      401"},
	{route: "DELETE /v1/keys/{id}", path: "/v1/keys/{key}", status: "                 204  404     404    404    404    404    404     404      403     404      401"},
	{route: "POST /v1/admin/blocked", body: `{"subject":"{nobody}","why":"spam"}`, status: "403 403 403   403    403    403    403     403      403     200      401"},
	{route: "GET /v1/admin/blocked", status: "                                        403  403     403    403    403    403    403     403      403     200      401"},
	{route: "DELETE /v1/admin/blocked/{subject}", path: "/v1/admin/blocked/{banned}", status: "403 403 403 403   403    403    403     403      403     204      401"},
	{route: "POST /v1/token", body: "grant_type=client_credentials&client_id={id}&client_secret={secret}",
		status: "                                                                     200= 200=    200=   200=   200=   200=   200=    200=     400     200=     401"},
	{route: "GET /.well-known/diaspora", status: "                                    200  200     200    200    200    200    200     200      200     200      200"},
	{route: "GET /healthz", status: "                                                 200  200     200    200    200    200    200     200      200     200      200"},
}

// TestWhoMayDoWhat sends each request of the matrix as each actor. A request that is refused must not
// change the topics, the ACLs or the ledger.
func TestWhoMayDoWhat(t *testing.T) {
	t.Parallel()
	w := newMatrixWorld(t)
	routes := server.Patterns()
	for _, row := range matrix {
		if !slices.Contains(routes, row.route) {
			t.Errorf("the matrix has %s, which is not a route", row.route)
		}
	}
	for _, route := range routes {
		if !slices.ContainsFunc(matrix, func(row matrixRow) bool { return row.route == route }) {
			t.Errorf("the matrix has no row for %s", route)
		}
	}
	stages := 10 // for requests that should have no effect, and do
	for _, row := range matrix {
		if row.aboutStage() {
			stages += row.successes()
		}
	}
	w.prepare(stages)
	for _, row := range matrix {
		status := strings.Fields(row.status)
		if len(status) != len(matrixActors) {
			t.Fatalf("%s %s has %d columns, want %d", row.route, row.about, len(status), len(matrixActors))
		}
		for i, actor := range matrixActors {
			w.cell(row, actor, status[i])
		}
	}
}

// successes returns how many actors change something.
func (row matrixRow) successes() (n int) {
	for _, status := range strings.Fields(row.status) {
		if row.changes(status) {
			n++
		}
	}
	return n
}

// aboutStage reports whether the request is about anything in a stage.
func (row matrixRow) aboutStage() bool {
	return strings.Contains(row.route, "{") || strings.Contains(row.body, "{name}")
}

func (row matrixRow) changes(status string) bool {
	return status < "3" && !strings.HasSuffix(status, "=") && !strings.HasPrefix(row.route, "GET ")
}

// matrixWorld is a fabric, with the actors signed in.
type matrixWorld struct {
	t       *testing.T
	f       *fabric.Fabric
	admin   *kadm.Client
	ledger  *kgo.Client // reads the ledger, and writes to it
	records []ledgerRecord

	tokens   map[string]string // by actor
	subjects map[string]string
	clients  map[string]*diaspora.Client
	keys     map[string]diaspora.NewAccessKey

	stages []*stage // those that no request has changed
	made   int      // names that were used
}

// stage is what the requests of one row are about, until one of them has an effect.
type stage struct {
	topic, public string
	key           string // of the owner
	banned        string // a subject that is blocked
	state         string // what was done to the topics: matrixRow.topic
}

type ledgerRecord struct {
	Op    string `json:"op"`
	Topic string `json:"topic"`

	offset int64
}

func newMatrixWorld(t *testing.T) *matrixWorld {
	t.Helper()
	f := fabrictest.Start(t, fabric.Config{Operators: []string{"operator@example.edu"}})
	w := &matrixWorld{
		t: t, f: f, admin: fabrictest.Admin(t, f), tokens: map[string]string{}, subjects: map[string]string{},
		clients: map[string]*diaspora.Client{}, keys: map[string]diaspora.NewAccessKey{},
	}
	var err error
	w.ledger, err = kgo.NewClient(append(inside.Of(f).Admin, kgo.ConsumeTopics(claims.LedgerTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	testkit.Must(t, err)
	t.Cleanup(w.ledger.Close)
	for _, actor := range matrixActors {
		if actor == "anonymous" {
			continue
		}
		w.subjects[actor], err = inside.Of(f).Globus.AddUser(globusdev.User{Identity: globusdev.Identity{Username: actor + "@example.edu"}})
		testkit.Must(t, err)
		login := fabrictest.Login(t, f, actor+"@example.edu")
		token, _ := login.Token(f.Discovery().Globus.ResourceServer)
		w.tokens[actor] = token.AccessToken.Reveal()
		cfg := fabrictest.WithToken(f, login)
		w.clients[actor] = fabrictest.Client(t, cfg)
		w.keys[actor] = fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "own", Read: true, Write: true})
	}
	auth := inside.Of(f).Globus
	_, err = auth.AddGroup(globusdev.Group{ID: lab, Name: "The laboratory"})
	testkit.Must(t, err)
	testkit.Must(t, auth.SetMember(globusdev.GroupMember{Group: lab, Identity: globusdev.ResourceServerID + "@clients.auth.globus.org", Role: "manager"}))
	testkit.Must(t, auth.SetMember(globusdev.GroupMember{Group: lab, Identity: "member@example.edu"}))
	return w
}

// prepare makes stages. All at once, because it takes a second until shares that have expired are
// gone.
func (w *matrixWorld) prepare(n int) {
	t, ctx := w.t, testkit.Within(w.t)
	t.Helper()
	owner := w.clients["owner"]
	for range n {
		s := &stage{topic: w.newName(), public: w.newName(), banned: uuid.NewString()}
		for _, name := range []string{s.topic, s.public} {
			_, err := owner.Claim(ctx, diaspora.ClaimRequest{Name: name})
			testkit.Must(t, err)
		}
		key, err := owner.CreateKey(ctx, diaspora.AccessKeyRequest{Name: s.topic, Topics: []string{s.topic}, Read: true})
		testkit.Must(t, err)
		s.key = key.ID
		_, err = w.clients["operator"].Block(ctx, diaspora.BlockRequest{Subject: s.banned, Why: "spam"})
		testkit.Must(t, err)
		w.stages = append(w.stages, s)
	}
	// No share can be made that has expired already, so these come from the ledger.
	w.readLedger()
	now := time.Now().UTC()
	for _, s := range w.stages {
		claim := w.claimOf(s.topic)
		w.append("topic/"+s.topic, map[string]any{"op": "share", "topic": s.topic, "claim": claim, "grantee": w.subjects["expired"], "manage": true, "limit": 1000, "by": w.subjects["owner"], "expires": now.Add(-time.Hour)})
	}
	for _, s := range w.stages {
		for actor, req := range map[string]diaspora.GrantRequest{
			"manager": {Manage: true}, "writer": {Write: true}, "reader": {Read: true}, "blocked": {Manage: true}, "member": {Group: lab, Read: true},
		} {
			if req.Group == "" {
				req.Subject = w.subjects[actor]
			}
			_, err := owner.Share(ctx, s.topic, req)
			testkit.Must(t, err)
		}
		_, err := owner.Share(ctx, s.public, diaspora.GrantRequest{Public: true, Read: true, Expires: now.Add(time.Hour)})
		testkit.Must(t, err)
	}
	_, err := w.clients["operator"].Block(ctx, diaspora.BlockRequest{Subject: w.subjects["blocked"], Why: "spam"})
	testkit.Must(t, err)
	testkit.Eventually(t, "the end of the shares that have expired, and of their ACLs", func() bool {
		return !strings.Contains(w.acls(), w.subjects["expired"]) && w.ops("share_expired") == n
	})
}

func (w *matrixWorld) newName() string {
	w.made++
	return "topic_" + strconv.Itoa(w.made)
}

// newUser returns the subject of a user who has no rights, if a request names one.
func (w *matrixWorld) newUser(body string) string {
	w.t.Helper()
	if !strings.Contains(body, "{nobody}") {
		return ""
	}
	subject, err := inside.Of(w.f).Globus.AddUser(globusdev.User{Identity: globusdev.Identity{Username: uuid.NewString() + "@example.edu"}})
	testkit.Must(w.t, err)
	return subject
}

// append appends a record to the ledger, as another replica of the service would.
func (w *matrixWorld) append(key string, fields map[string]any) {
	w.t.Helper()
	fields["v"], fields["id"], fields["time"] = 4, uuid.NewString(), time.Now().UTC()
	value, err := json.Marshal(fields)
	testkit.Must(w.t, err)
	testkit.Must(w.t, w.ledger.ProduceSync(testkit.Within(w.t), &kgo.Record{Topic: claims.LedgerTopic, Key: []byte(key), Value: value}).FirstErr())
}

// readLedger reads to the end of the ledger.
func (w *matrixWorld) readLedger() {
	w.t.Helper()
	ends, err := w.admin.ListEndOffsets(testkit.Within(w.t), claims.LedgerTopic)
	testkit.Must(w.t, err)
	end, _ := ends.Lookup(claims.LedgerTopic, 0)
	for len(w.records) == 0 || w.records[len(w.records)-1].offset < end.Offset-1 {
		fetches := w.ledger.PollFetches(testkit.Within(w.t))
		testkit.Must(w.t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			entry := ledgerRecord{offset: r.Offset}
			testkit.Must(w.t, json.Unmarshal(r.Value, &entry))
			w.records = append(w.records, entry)
		})
	}
}

func (w *matrixWorld) claimOf(topic string) int64 {
	for _, r := range slices.Backward(w.records) {
		if r.Op == "claim" && r.Topic == topic {
			return r.offset
		}
	}
	w.t.Fatalf("the ledger has no claim of %s", topic)
	return 0
}

func (w *matrixWorld) ops(op string) (n int) {
	w.readLedger()
	for _, r := range w.records {
		if r.Op == op {
			n++
		}
	}
	return n
}

func (w *matrixWorld) acls() string {
	w.t.Helper()
	described, err := w.admin.DescribeACLs(testkit.Within(w.t), kadm.NewACLs().AnyResource().Allow().AllowHosts().Deny().DenyHosts().Operations().ResourcePatternType(kadm.ACLPatternAny))
	testkit.Must(w.t, err)
	var lines []string
	for _, filter := range described {
		testkit.Must(w.t, filter.Err)
		for _, a := range filter.Described {
			lines = append(lines, fmt.Sprint(a.Principal, a.Host, a.Type, a.Name, a.Operation, a.Permission))
		}
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n")
}

// snapshot is what requests can change.
type snapshot struct {
	topics, acls string
	records      string // the operations in the ledger, without those that the service writes by itself
}

// diff returns the lines that are in one snapshot only.
func (s snapshot) diff(other snapshot) string {
	var lines []string
	for _, pair := range [][2]string{{s.topics, other.topics}, {s.acls, other.acls}, {s.records, other.records}} {
		before, after := strings.Split(pair[0], "\n"), strings.Split(pair[1], "\n")
		for _, line := range before {
			if !slices.Contains(after, line) {
				lines = append(lines, "- "+line)
			}
		}
		for _, line := range after {
			if !slices.Contains(before, line) {
				lines = append(lines, "+ "+line)
			}
		}
	}
	return strings.Join(lines, "\n")
}

func (w *matrixWorld) snapshot() snapshot {
	w.t.Helper()
	topics, err := kmsg.NewPtrMetadataRequest().RequestWith(testkit.Within(w.t), w.ledger) // kadm's answer may be old
	testkit.Must(w.t, err)
	var names []string
	for _, topic := range topics.Topics {
		names = append(names, fmt.Sprint(*topic.Topic, " ", len(topic.Partitions)))
	}
	slices.Sort(names)
	w.readLedger()
	var records []string
	for _, r := range w.records {
		if r.Op != "key_used" {
			records = append(records, fmt.Sprint(r.offset, " ", r.Op, " ", r.Topic))
		}
	}
	return snapshot{strings.Join(names, "\n"), w.acls(), strings.Join(records, "\n")}
}

// cell sends the request of a row as an actor.
func (w *matrixWorld) cell(row matrixRow, actor, want string) {
	t := w.t
	t.Helper()
	what := strings.TrimSpace(row.route+" "+row.about) + " as " + actor
	s := w.stage(row.topic)
	before := w.snapshot()
	answer := w.send(row, s, actor)
	after := w.snapshot()
	if got := strconv.Itoa(answer.status); got != strings.TrimSuffix(want, "=") {
		t.Errorf("%s: %s, want %s: %s", what, got, want, answer.body)
	}
	changed := after != before
	if changed && row.aboutStage() {
		w.stages = slices.DeleteFunc(w.stages, func(other *stage) bool { return other == s })
	}
	if answer.status >= 400 {
		if changed {
			t.Errorf("%s was refused, and changed something: %s", what, before.diff(after))
		}
		var p diaspora.Problem
		if err := json.Unmarshal([]byte(answer.body), &p); err != nil || row.route != "POST /v1/token" && (p.Title == "" || p.Detail == "" || p.Status != answer.status || p.Type == "/problems/") {
			t.Errorf("%s is refused with an incomplete problem (%v):\n%s", what, err, answer.body)
		}
		// Those who may not see the topic learn nothing about it from a refusal.
		for _, secret := range []string{w.subjects["reader"], w.tokens[actor]} {
			if secret != "" && actor != "reader" && strings.Contains(answer.body, secret) {
				t.Errorf("%s: the refusal shows %q:\n%s", what, secret, answer.body)
			}
		}
	} else if changed != row.changes(want) {
		t.Errorf("%s has changed something: %v, want %v: %s", what, changed, row.changes(want), before.diff(after))
	}
}

// stage returns topics that are as a row needs them.
func (w *matrixWorld) stage(state string) *stage {
	t, ctx, owner := w.t, testkit.Within(w.t), w.clients["owner"]
	t.Helper()
	for _, s := range w.stages {
		if s.state == state {
			return s
		}
	}
	i := slices.IndexFunc(w.stages, func(s *stage) bool { return s.state == "" })
	if i < 0 {
		t.Fatal("more requests had an effect than the matrix says")
	}
	s := w.stages[i]
	for _, name := range []string{s.topic, s.public} {
		var err error
		if state == "retired" {
			_, err = owner.Retire(ctx, name)
		} else {
			_, err = owner.Transfer(ctx, name, diaspora.Transfer{Subject: w.subjects["reader"]})
		}
		testkit.Must(t, err)
	}
	s.state = state
	return s
}

type matrixAnswer struct {
	status int
	body   string
}

func (w *matrixWorld) send(row matrixRow, s *stage, actor string) matrixAnswer {
	t := w.t
	t.Helper()
	topic := s.topic
	if actor == "public" {
		topic = s.public
	}
	key := w.keys[actor]
	fill := strings.NewReplacer(
		"{name}", topic, "{new}", w.newName(), "{reader}", w.subjects["reader"], "{self}", cmp.Or(w.subjects[actor], "nobody"), "{username}", url.PathEscape("owner@example.edu"), "{key}", s.key,
		"{banned}", s.banned, "{nobody}", w.newUser(row.body), "{unknown}", uuid.NewString(), "{token}", w.tokens[actor], "{id}", key.ID, "{secret}", key.Secret.Reveal(),
	)
	method, path, _ := strings.Cut(row.route, " ")
	if row.path != "" {
		path = row.path
	}
	request, err := http.NewRequestWithContext(t.Context(), method, w.f.URL()+fill.Replace(path), strings.NewReader(fill.Replace(row.body)))
	testkit.Must(t, err)
	inBody := strings.Contains(row.body, "=") // a form, which has the credentials
	if row.body != "" {
		request.Header.Set("Content-Type", map[bool]string{true: formBody, false: jsonBody}[inBody])
	}
	request.Header.Set("Accept", "application/json, application/problem+json, */*;q=0.1")
	if token := w.tokens[actor]; token != "" && !inBody {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	testkit.Must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	testkit.Must(t, err)
	return matrixAnswer{response.StatusCode, string(body)}
}
