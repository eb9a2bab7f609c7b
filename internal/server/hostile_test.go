package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	adaBearer = "Bearer " + adaToken
	weather   = `{"name":"weather"}`
	laptop    = `{"name":"laptop","read":true}`
)

type badRequest struct {
	name    string
	method  string
	target  string
	body    string
	headers []string // pairs
	status  int
}

// badRequests are requests that must change nothing. Each one is sent as a program and as a browser
// would send it. Both must get the same status.
var badRequests = []badRequest{
	// Authentication, on /v1.
	{"no Authorization", "GET", "/v1/topics", "", nil, 401},
	{"empty Authorization", "GET", "/v1/topics", "", []string{"Authorization", ""}, 401},
	{"Basic", "GET", "/v1/topics", "", []string{"Authorization", "Basic YWRhOg=="}, 401},
	{"scheme without token", "GET", "/v1/topics", "", []string{"Authorization", "Bearer"}, 401},
	{"scheme and space only", "GET", "/v1/topics", "", []string{"Authorization", "Bearer "}, 401},
	{"token without scheme", "GET", "/v1/topics", "", []string{"Authorization", adaToken}, 401},
	{"token that is too short", "GET", "/v1/topics", "", []string{"Authorization", "Bearer short"}, 401},
	{"token that is too long", "GET", "/v1/topics", "", []string{"Authorization", "Bearer " + strings.Repeat("a", 4097)}, 401},
	{"two tokens in one header", "GET", "/v1/topics", "", []string{"Authorization", adaBearer + " " + bobToken}, 401},
	{"two tokens with a comma", "GET", "/v1/topics", "", []string{"Authorization", adaBearer + ", " + adaBearer}, 401},
	{"quoted token", "GET", "/v1/topics", "", []string{"Authorization", `Bearer "` + adaToken + `"`}, 401},
	{"two Authorization headers", "GET", "/v1/topics", "", []string{"Authorization", adaBearer, "Authorization", "Bearer " + bobToken}, 401},
	{"the same Authorization twice", "GET", "/v1/topics", "", []string{"Authorization", adaBearer, "Authorization", adaBearer}, 401},
	{"expired token", "GET", "/v1/topics", "", []string{"Authorization", "Bearer " + expiredToken}, 401},
	{"token of another scope", "GET", "/v1/topics", "", []string{"Authorization", "Bearer " + narrowToken}, 403},
	{"Globus misconfigured", "GET", "/v1/topics", "", []string{"Authorization", "Bearer " + misconToken}, 500},
	{"Globus down", "GET", "/v1/topics", "", []string{"Authorization", "Bearer " + outageToken}, 503},
	{"token in the query", "GET", "/v1/topics?token=" + adaToken, "", nil, 400},
	{"access_token in the query", "GET", "/v1/topics?access_token=" + adaToken, "", nil, 400},
	{"token in query and header", "GET", "/v1/topics?token=" + adaToken, "", []string{"Authorization", adaBearer}, 400},
	{"token as the query", "POST", "/v1/topics?" + adaToken, weather, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"token as the path", "GET", "/v1/topics/" + adaToken, "", []string{"Authorization", adaBearer}, 400},
	{"token that is a good name as the path", "GET", "/v1/topics/" + nameToken, "", []string{"Authorization", "Bearer " + nameToken}, 404},
	{"token that is a good name as the name", "POST", "/v1/topics", `{"name":"` + nameToken + `"}`, []string{"Authorization", "Bearer " + nameToken, "Content-Type", typeJSON}, 400},
	{"token of nobody", "GET", "/v1/topics", "", []string{"Authorization", "Bearer " + nobodyToken}, 500},
	{"token as an unknown path", "GET", "/" + adaToken, "", nil, 404},
	{"token as the user of a proxy", "GET", "/v1/topics", "", []string{"Proxy-Authorization", adaBearer}, 401},
	{"token in a cookie", "GET", "/v1/topics", "", []string{"Cookie", "token=" + adaToken}, 401},

	// Paths and methods.
	{"unknown path", "GET", "/v2/topics", "", []string{"Authorization", adaBearer}, 404},
	{"trailing slash", "GET", "/v1/topics/", "", []string{"Authorization", adaBearer}, 404},
	{"double slash", "GET", "//acl?token=" + adaToken, "", nil, 404},
	{"dots", "GET", "/v1/../acl?token=" + adaToken, "", nil, 404},
	{"encoded dots", "GET", "/assets/%2e%2e%2fserver.go", "", nil, 404},
	{"encoded slash in a name", "GET", "/v1/topics/a%2Fb", "", []string{"Authorization", adaBearer}, 400},
	{"encoded NUL in a name", "GET", "/v1/topics/a%00b", "", []string{"Authorization", adaBearer}, 400},
	{"capitals in the path", "GET", "/ACL", "", nil, 404},
	{"block by nobody", "POST", "/v1/admin/blocked", `{"subject":"` + bob + `","why":"x"}`, []string{"Content-Type", typeJSON}, 401},
	{"block with the token as the reason", "POST", "/v1/admin/blocked", `{"subject":"` + bob + `","why":"` + adaToken + `"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"PUT a block", "PUT", "/v1/admin/blocked/" + bob, "", []string{"Authorization", adaBearer}, 405},
	{"PUT a topic", "PUT", "/v1/topics/weather", "{}", []string{"Authorization", adaBearer}, 405},
	{"POST to a topic", "POST", "/v1/topics/weather", "{}", []string{"Authorization", adaBearer}, 405},
	{"DELETE all topics", "DELETE", "/v1/topics", "", []string{"Authorization", adaBearer}, 405},
	{"PUT the form", "PUT", "/acl", "", nil, 405},
	{"DELETE the form", "DELETE", "/acl", "", nil, 405},
	{"TRACE", "TRACE", "/acl", "", []string{"Authorization", adaBearer}, 405},
	{"preflight", "OPTIONS", "/v1/topics", "", []string{"Origin", "https://evil.example", "Access-Control-Request-Method", "POST"}, 405},
	{"invented method", canary, "/acl", "", nil, 405},
	{"POST to health", "POST", "/healthz", "", nil, 405},
	{"POST to discovery", "POST", "/.well-known/diaspora", "", nil, 405},
	{"GET with a body", "GET", "/v1/topics", "x", []string{"Authorization", adaBearer}, 400},
	{"DELETE with a body", "DELETE", "/v1/topics/weather", "{}", []string{"Authorization", adaBearer}, 400},

	// Formats.
	{"no Content-Type", "POST", "/v1/topics", weather, []string{"Authorization", adaBearer}, 415},
	{"form on the API", "POST", "/v1/topics", "name=weather", []string{"Authorization", adaBearer, "Content-Type", typeForm}, 415},
	{"text", "POST", "/v1/topics", weather, []string{"Authorization", adaBearer, "Content-Type", "text/plain"}, 415},
	{"two Content-Types", "POST", "/v1/topics", weather, []string{"Authorization", adaBearer, "Content-Type", typeJSON, "Content-Type", typeForm}, 415},
	{"broken Content-Type", "POST", "/v1/topics", weather, []string{"Authorization", adaBearer, "Content-Type", "application/json; charset"}, 415},
	{"UTF-16", "POST", "/v1/topics", weather, []string{"Authorization", adaBearer, "Content-Type", "application/json; charset=utf-16"}, 415},
	{"compressed", "POST", "/v1/topics", weather, []string{"Authorization", adaBearer, "Content-Type", typeJSON, "Content-Encoding", "gzip"}, 415},
	{"multipart form", "POST", "/acl", "--x\r\nContent-Disposition: form-data; name=\"token\"\r\n\r\n" + adaToken + "\r\n--x--\r\n", []string{"Content-Type", "multipart/form-data; boundary=x"}, 415},
	{"form without its type", "POST", "/acl", form(ada, adaToken, "weather"), nil, 415},
	{"an image, please", "GET", "/v1/topics", "", []string{"Authorization", adaBearer, "Accept", "image/png"}, 406},
	{"anything but JSON", "GET", "/v1/topics", "", []string{"Authorization", adaBearer, "Accept", "*/*, application/json;q=0"}, 406},
	{"the form as JSON", "GET", "/acl", "", []string{"Accept", typeJSON}, 406},

	// Sizes.
	{"body over the limit", "POST", "/v1/topics", `{"name":"weather","description":"` + strings.Repeat("x", maxBodyBytes) + `"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 413},
	{"form over the limit", "POST", "/acl", form(ada, adaToken, strings.Repeat("x", maxBodyBytes)), []string{"Content-Type", typeForm}, 413},
	{"address over the limit", "GET", "/acl?topic=" + strings.Repeat("x", maxTargetBytes), "", nil, 414},
	{"header over the limit", "GET", "/acl", "", []string{"X-Filler", strings.Repeat("x", maxHeaderBytes)}, 431},
	{"many headers", "GET", "/acl", "", strings.Split(strings.Repeat("X-Filler,x,", maxHeaderBytes/12)+"X-Filler,x", ","), 431},

	// Bodies of the API.
	{"empty body", "POST", "/v1/topics", "", []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"not JSON", "POST", "/v1/topics", "name=weather", []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"cut off", "POST", "/v1/topics", `{"name":"wea`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"not closed", "POST", "/v1/topics", `{"name":"weather"`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"an array", "POST", "/v1/topics", `[{"name":"weather"}]`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"a string", "POST", "/v1/topics", `"weather"`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"null", "POST", "/v1/topics", `null`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"trailing object", "POST", "/v1/topics", weather + `{}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"trailing garbage", "POST", "/v1/topics", weather + ` x`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"trailing NUL", "POST", "/v1/topics", weather + "\x00", []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"byte order mark", "POST", "/v1/topics", "\ufeff" + weather, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"duplicate field", "POST", "/v1/topics", `{"name":"weather","name":"weather"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"duplicate field, escaped", "POST", "/v1/topics", `{"name":"weather","n\u0061me":"snow"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"unknown field", "POST", "/v1/topics", `{"name":"weather","owner":"` + bob + `"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"unknown field named as a token", "POST", "/v1/topics", `{"name":"weather","` + bobToken + `":1}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"field in capitals", "POST", "/v1/topics", `{"NAME":"weather"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"name null", "POST", "/v1/topics", `{"name":null}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"name a number", "POST", "/v1/topics", `{"name":7}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"name an object", "POST", "/v1/topics", `{"name":{"name":"weather"}}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"partitions null", "POST", "/v1/topics", `{"name":"weather","partitions":null}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"partitions a string", "POST", "/v1/topics", `{"name":"weather","partitions":"3"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"partitions a fraction", "POST", "/v1/topics", `{"name":"weather","partitions":1.5}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"partitions beyond int", "POST", "/v1/topics", `{"name":"weather","partitions":99999999999999999999}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"partitions negative", "POST", "/v1/topics", `{"name":"weather","partitions":-1}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"partitions by the million", "POST", "/v1/topics", `{"name":"weather","partitions":1000000}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"retention negative", "POST", "/v1/topics", `{"name":"weather","retention_ms":-2}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"Latin-1", "POST", "/v1/topics", "{\"name\":\"weather\",\"description\":\"f\xfcr\"}", []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"lone surrogate", "POST", "/v1/topics", `{"name":"weather","description":"\ud800"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"control characters", "POST", "/v1/topics", `{"name":"weather","description":"\u001b[2J"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"deep nesting", "POST", "/v1/topics", `{"name":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"the token as the name", "POST", "/v1/topics", `{"name":"` + adaToken + `"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"another token as the name", "POST", "/v1/topics", `{"name":"` + bobToken + `"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"the token in the description", "POST", "/v1/topics", `{"name":"weather","description":"with ` + adaToken + `"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},

	// Access keys.
	{"keys without a token", "GET", "/v1/keys", "", nil, 401},
	{"key made without a token", "POST", "/v1/keys", laptop, []string{"Content-Type", typeJSON}, 401},
	{"key made with a key's ID and secret", "POST", "/v1/keys", laptop, []string{"Authorization", "Basic a2V5LWFiY2RlZmdoaWoyMzQ1Njc6ZGtzX3g=", "Content-Type", typeJSON}, 401},
	{"key made with a key's token", "POST", "/v1/keys", laptop, []string{"Authorization", "Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0." + canary, "Content-Type", typeJSON}, 403},
	{"topic claimed with a key's token", "POST", "/v1/topics", weather, []string{"Authorization", "Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0." + canary, "Content-Type", typeJSON}, 403},
	{"key made with an expired token", "POST", "/v1/keys", laptop, []string{"Authorization", "Bearer " + expiredToken, "Content-Type", typeJSON}, 401},
	{"key made while Globus is down", "POST", "/v1/keys", laptop, []string{"Authorization", "Bearer " + outageToken, "Content-Type", typeJSON}, 503},
	{"key made from another site", "POST", "/v1/keys", laptop, []string{"Authorization", adaBearer, "Content-Type", typeJSON, "Sec-Fetch-Site", "cross-site"}, 403},
	{"key made by a form", "POST", "/v1/keys", "name=laptop&read=true", []string{"Authorization", adaBearer, "Content-Type", typeForm}, 415},
	{"key with its fields in the query", "POST", "/v1/keys?name=laptop&read=true", "{}", []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"PUT a key", "PUT", "/v1/keys/key-abcdefghij234567", "{}", []string{"Authorization", adaBearer}, 405},
	{"DELETE all keys", "DELETE", "/v1/keys", "", []string{"Authorization", adaBearer}, 405},
	{"GET the token endpoint", "GET", "/v1/token", "", []string{"Authorization", adaBearer}, 405},
	{"key without a name", "POST", "/v1/keys", `{"read":true}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key with no right", "POST", "/v1/keys", `{"name":"laptop"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key with false rights", "POST", "/v1/keys", `{"name":"laptop","read":false,"write":false}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key with rights as text", "POST", "/v1/keys", `{"name":"laptop","read":"true"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key for no topics", "POST", "/v1/keys", `{"name":"laptop","read":true,"topics":[]}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key for topics null", "POST", "/v1/keys", `{"name":"laptop","read":true,"topics":null}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key for a topic as text", "POST", "/v1/keys", `{"name":"laptop","read":true,"topics":"taken"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key for a topic null", "POST", "/v1/keys", `{"name":"laptop","read":true,"topics":[null]}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key for every topic", "POST", "/v1/keys", `{"name":"laptop","read":true,"topics":["*"]}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key for the ledger", "POST", "/v1/keys", `{"name":"laptop","read":true,"topics":["_diaspora_ledger"]}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key for a lone surrogate", "POST", "/v1/keys", `{"name":"laptop","read":true,"topics":["\ud800"]}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key for too many topics", "POST", "/v1/keys", `{"name":"laptop","read":true,"topics":["t` + strings.Repeat(`","t`, 5000) + `"]}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key for nobody's topic", "POST", "/v1/keys", `{"name":"laptop","read":true,"topics":["rain"]}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 404},
	{"key for another's topic", "POST", "/v1/keys", `{"name":"laptop","read":true,"topics":["taken"]}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 403},
	{"key for another", "POST", "/v1/keys", `{"name":"laptop","read":true,"owner":"` + bob + `"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key with a secret of one's own", "POST", "/v1/keys", `{"name":"laptop","read":true,"secret":"dks_` + canary + `"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key with an ID of one's own", "POST", "/v1/keys", `{"name":"laptop","read":true,"id":"key-abcdefghij234567"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key that has expired", "POST", "/v1/keys", `{"name":"laptop","read":true,"expires":"2020-01-01T00:00:00Z"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key that expires some day", "POST", "/v1/keys", `{"name":"laptop","read":true,"expires":"tomorrow"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key that expires in seconds", "POST", "/v1/keys", `{"name":"laptop","read":true,"expires":1900000000}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key that expires in another age", "POST", "/v1/keys", `{"name":"laptop","read":true,"expires":"9999-12-31T23:59:59Z"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"the token as the key's name", "POST", "/v1/keys", `{"name":"` + adaToken + `","read":true}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"another token as the key's topic", "POST", "/v1/keys", `{"name":"laptop","read":true,"topics":["` + bobToken + `"]}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key named as an ID", "POST", "/v1/keys", `{"name":"key-abcdefghij234567","read":true}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key named with markup", "POST", "/v1/keys", `{"name":"<script>","read":true}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key named with control characters", "POST", "/v1/keys", `{"name":"\u001b[2J","read":true}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"key that is none", "GET", "/v1/keys/laptop", "", []string{"Authorization", adaBearer}, 400},
	{"token as a key's ID", "GET", "/v1/keys/" + bobToken, "", []string{"Authorization", adaBearer}, 400},
	{"token as the ID of a key to revoke", "DELETE", "/v1/keys/" + bobToken, "", []string{"Authorization", adaBearer}, 400},
	{"key that is not there", "GET", "/v1/keys/key-abcdefghij234567", "", []string{"Authorization", adaBearer}, 404},
	{"revocation of what is not there", "DELETE", "/v1/keys/key-abcdefghij234567", "", []string{"Authorization", adaBearer}, 404},

	// Host names.
	{"no name", "POST", "/v1/topics", `{}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"empty name", "POST", "/v1/topics", `{"name":""}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"leading underscore", "POST", "/v1/topics", `{"name":"_diaspora_ledger"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"Kafka's own topic", "POST", "/v1/topics", `{"name":"__consumer_offsets"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"name with a dot", "POST", "/v1/topics", `{"name":"a.b"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"name with space", "POST", "/v1/topics", `{"name":"wea ther"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"name with space around", "POST", "/v1/topics", `{"name":" weather "}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"name with an umlaut", "POST", "/v1/topics", `{"name":"wetterkühl"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"name with markup", "POST", "/v1/topics", `{"name":"<script>"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"name with NUL", "POST", "/v1/topics", `{"name":"a\u0000"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"name with a line break", "POST", "/v1/topics", `{"name":"a\nb"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"name of 250 characters", "POST", "/v1/topics", `{"name":"` + strings.Repeat("a", 250) + `"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 400},
	{"topic that is not there", "GET", "/v1/topics/weather", "", []string{"Authorization", adaBearer}, 404},
	{"release of what is not there", "DELETE", "/v1/topics/weather", "", []string{"Authorization", adaBearer}, 404},
	{"topic of another", "GET", "/v1/topics/taken", "", []string{"Authorization", adaBearer}, 403},
	{"release of another's", "DELETE", "/v1/topics/taken", "", []string{"Authorization", adaBearer}, 403},
	{"claim of another's", "POST", "/v1/topics", `{"name":"taken"}`, []string{"Authorization", adaBearer, "Content-Type", typeJSON}, 409},

	// The form.
	{"form: taken", "POST", "/acl", form(ada, adaToken, "taken"), []string{"Content-Type", typeForm}, 409},
	{"form: subject of another", "POST", "/acl", form(bob, adaToken, "weather"), []string{"Content-Type", typeForm}, 403},
	{"form: subject that is none", "POST", "/acl", form("ada@example.edu", adaToken, "weather"), []string{"Content-Type", typeForm}, 403},
	{"form: expired token", "POST", "/acl", form(ada, expiredToken, "weather"), []string{"Content-Type", typeForm}, 401},
	{"form: Globus down", "POST", "/acl", form(ada, outageToken, "weather"), []string{"Content-Type", typeForm}, 503},
	{"form: no token", "POST", "/acl", form(ada, "", "weather"), []string{"Content-Type", typeForm}, 401},
	{"form: no subject", "POST", "/acl", form("", adaToken, "weather"), []string{"Content-Type", typeForm}, 400},
	{"form: no topic", "POST", "/acl", form(ada, adaToken, ""), []string{"Content-Type", typeForm}, 400},
	{"form: bad topic", "POST", "/acl", form(ada, adaToken, "wea-ther"), []string{"Content-Type", typeForm}, 400},
	{"form: markup as the topic", "POST", "/acl", form(ada, adaToken, `"><script>alert(1)</script>`), []string{"Content-Type", typeForm}, 400},
	{"form: token as the topic", "POST", "/acl", form(ada, adaToken, adaToken), []string{"Content-Type", typeForm}, 400},
	{"form: token as the topic only", "POST", "/acl", form(ada, "", adaToken), []string{"Content-Type", typeForm}, 401},
	{"form: another token as the topic", "POST", "/acl", form(ada, adaToken, bobToken), []string{"Content-Type", typeForm}, 400},
	{"form: token as the subject", "POST", "/acl", form(adaToken, adaToken, "weather"), []string{"Content-Type", typeForm}, 403},
	{"form: another token as the subject", "POST", "/acl", form(bobToken, adaToken, "weather"), []string{"Content-Type", typeForm}, 403},
	{"form: with the word Bearer", "POST", "/acl", form(ada, adaBearer, "weather"), []string{"Content-Type", typeForm}, 401},
	{"form: empty", "POST", "/acl", "", []string{"Content-Type", typeForm}, 401},
	{"form: duplicate subject", "POST", "/acl", form(ada, adaToken, "weather") + "&subject=" + ada, []string{"Content-Type", typeForm}, 400},
	{"form: duplicate token", "POST", "/acl", form(ada, adaToken, "weather") + "&token=" + bobToken, []string{"Content-Type", typeForm}, 400},
	{"form: duplicate topic", "POST", "/acl", form(ada, adaToken, "weather") + "&topic=snow", []string{"Content-Type", typeForm}, 400},
	{"form: unknown field", "POST", "/acl", form(ada, adaToken, "weather") + "&" + adaToken + "=1", []string{"Content-Type", typeForm}, 400},
	{"form: semicolons", "POST", "/acl", "subject=" + ada + ";token=" + adaToken + ";topic=weather", []string{"Content-Type", typeForm}, 400},
	{"form: broken escape", "POST", "/acl", form(ada, adaToken, "weather") + "%zz", []string{"Content-Type", typeForm}, 400},
	{"form: escapes that are no UTF-8", "POST", "/acl", form(ada, adaToken, "w\xff"), []string{"Content-Type", typeForm}, 400},
	{"form: NUL", "POST", "/acl", form(ada, adaToken, "w\x00"), []string{"Content-Type", typeForm}, 400},
	{"form: JSON under its type", "POST", "/acl", `{"subject":"` + ada + `","token":"` + adaToken + `","topic":"weather"}`, []string{"Content-Type", typeForm}, 400},
	{"form: fields in the query", "POST", "/acl?" + form(ada, adaToken, "weather"), "", []string{"Content-Type", typeForm}, 400},
	{"form: token in query and body", "POST", "/acl?token=" + adaToken, form(ada, adaToken, "weather"), []string{"Content-Type", typeForm}, 400},
	{"form: token in header and body", "POST", "/acl", form(ada, adaToken, "weather"), []string{"Content-Type", typeForm, "Authorization", adaBearer}, 400},
	{"form: other token in header and body", "POST", "/acl", form(ada, adaToken, "weather"), []string{"Content-Type", typeForm, "Authorization", "Bearer " + bobToken}, 400},
	{"form: two Authorization headers", "POST", "/acl", form(ada, "", "weather"), []string{"Content-Type", typeForm, "Authorization", adaBearer, "Authorization", "Bearer " + bobToken}, 401},
	{"form: partitions", "POST", "/acl", `{"subject":"` + ada + `","token":"` + adaToken + `","topic":"weather","partitions":3}`, []string{"Content-Type", typeJSON}, 400},
	{"form: token a list", "POST", "/acl", `{"subject":"` + ada + `","token":["` + adaToken + `"],"topic":"weather"}`, []string{"Content-Type", typeJSON}, 400},
	{"link: duplicate topic", "GET", "/acl?topic=a&topic=b", "", nil, 400},
	{"link: broken escape", "GET", "/acl?token=" + adaToken + "%zz", "", nil, 400},
	{"link: no UTF-8", "GET", "/acl?topic=%ff&token=" + adaToken, "", nil, 400},

	// Cross-site requests.
	{"cross-site post", "POST", "/acl", form(ada, adaToken, "weather"), []string{"Content-Type", typeForm, "Sec-Fetch-Site", "cross-site"}, 403},
	{"same-site post", "POST", "/acl", form(ada, adaToken, "weather"), []string{"Content-Type", typeForm, "Sec-Fetch-Site", "same-site"}, 403},
	{"post of an old browser", "POST", "/acl", form(ada, adaToken, "weather"), []string{"Content-Type", typeForm, "Origin", "https://evil.example"}, 403},
	{"post of an opaque origin", "POST", "/acl", form(ada, adaToken, "weather"), []string{"Content-Type", typeForm, "Origin", "null"}, 403},
	{"cross-site claim on the API", "POST", "/v1/topics", weather, []string{"Authorization", adaBearer, "Content-Type", typeJSON, "Sec-Fetch-Site", "cross-site"}, 403},
	{"cross-site release", "DELETE", "/v1/topics/taken", "", []string{"Authorization", adaBearer, "Origin", "http://localhost:1"}, 403},
	{"foreign name", "GET", "/acl", "", []string{"Host", "evil.example"}, 421},
	{"rebound name with our port", "POST", "/acl", form(ada, adaToken, "weather"), []string{"Content-Type", typeForm, "Host", "evil.example:9090", "Origin", "http://evil.example:9090"}, 421},
	{"loopback with another port", "GET", "/v1/topics", "", []string{"Authorization", adaBearer, "Host", "127.0.0.1:1"}, 421},
	{"forwarded name", "GET", "/acl", "", []string{"Host", canary + ".example", "X-Forwarded-Host", "127.0.0.1"}, 421},
}

func TestBadRequests(t *testing.T) {
	if len(badRequests) < 60 {
		t.Fatalf("only %d bad requests", len(badRequests))
	}
	service := openClaims(t)
	if _, err := service.Claim(t.Context(), bob, diaspora.ClaimRequest{Name: "taken"}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range badRequests {
		t.Run(tt.name, func(t *testing.T) {
			e := start(t, withClaims(service)) // a new one, without counted failures
			a := e.do(tt.method, tt.target, tt.body, tt.headers...)
			p := a.problem(t)
			if a.status != tt.status {
				t.Errorf("status %d, want %d: %+v", a.status, tt.status, p)
			}
			e.checkChallenge(a)
			if !strings.Contains(strings.Join(tt.headers, " "), "Accept ") {
				a := e.do(tt.method, tt.target, tt.body, append([]string{"Accept", "text/html,*/*;q=0.8"}, tt.headers...)...)
				if a.status != tt.status && tt.status != http.StatusNotAcceptable || a.header.Get("Content-Type") != "text/html; charset=utf-8" {
					t.Errorf("as a browser: status %d, type %q, want %d as a page", a.status, a.header.Get("Content-Type"), tt.status)
				}
				if strings.Contains(a.body, "<script>") {
					t.Errorf("markup came through:\n%s", a.body)
				}
				e.checkChallenge(a)
			}
			if a := e.do("GET", "/v1/topics", "", "Authorization", adaBearer); strings.Contains(a.body, "name") {
				t.Errorf("a topic was claimed: %s", a.body)
			}
			if a := e.do("GET", "/v1/keys", "", "Authorization", adaBearer); !strings.Contains(a.body, `"keys": []`) {
				t.Errorf("a key was made: %s", a.body)
			}
			if a := e.do("GET", "/v1/topics/taken", "", "Authorization", "Bearer "+bobToken); a.status != 200 {
				t.Errorf("a topic was lost: %s", a.body)
			}
		})
	}
}

// TestNoRedirects requests URLs that web servers often redirect, each with a token in its query. A
// redirect would repeat the token in the response, and in the logs of proxies.
func TestNoRedirects(t *testing.T) {
	e := start(t)
	for _, path := range []string{
		"//", "///", "/./", "/../", "/.", "/..", "//.", "/acl/", "//acl", "/acl//", "/./acl", "/acl/.", "/x/../acl", "/acl/../acl", "/%2e/acl", "/%2e%2e/acl", "/%2facl", "//acl/",
		"/v1", "/v1/", "/v1/topics/", "/v1//topics", "/v1/topics//x", "/v1/topics/x/", "/v1/topics/..", "/assets", "/assets/", "/assets/../acl", "/.well-known/", "/healthz/",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "DELETE", "OPTIONS"} {
			conn, err := net.Dial("tcp", e.addr)
			testkit.Must(t, err)
			fmt.Fprintf(conn, "%s %s?token=%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", method, path, adaToken, e.addr)
			resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
			if err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			body, _ := io.ReadAll(resp.Body)
			conn.Close()
			if resp.StatusCode < 400 || resp.Header.Get("Location") != "" || e.leaks(string(body)) || e.leaks(fmt.Sprint(resp.Header)) {
				t.Errorf("%s %s with a token: status %d, %v\n%s", method, path, resp.StatusCode, resp.Header, body)
			}
		}
	}
}

// checkChallenge checks the headers that belong to a status.
func (e *endpoint) checkChallenge(a answer) {
	e.t.Helper()
	for status, name := range map[int]string{401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"} {
		if got := a.header.Get(name); (a.status == status) != (got != "") && !(a.status == 403 && strings.Contains(got, "insufficient_scope")) && name != "Retry-After" {
			e.t.Errorf("status %d with %s = %q", a.status, name, got)
		} else if a.status == status && got == "" {
			e.t.Errorf("status %d without %s", a.status, name)
		}
	}
	if got := a.header.Get("WWW-Authenticate"); a.status == 401 && !strings.HasPrefix(got, "Bearer") {
		e.t.Errorf("WWW-Authenticate = %q, want Bearer", got)
	}
	if got := a.header.Get("Allow"); strings.Contains(got, "GET") && !strings.Contains(got, "HEAD") {
		e.t.Errorf("Allow = %q, without HEAD", got)
	}
	if got := a.header.Get("Access-Control-Allow-Origin"); got != "" {
		e.t.Errorf("Access-Control-Allow-Origin = %q", got)
	}
}

// TestBadBytes sends what no HTTP client sends. net/http itself refuses most of it.
func TestBadBytes(t *testing.T) {
	e := start(t)
	host := "Host: " + e.addr + "\r\n"
	for _, tt := range []struct {
		name, bytes string
		status      int // 0: closing without a response is accepted too
	}{
		{"not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400},
		{"no Host", "GET /acl HTTP/1.1\r\n\r\n", 400},
		{"HTTP/1.0 without Host", "GET /acl HTTP/1.0\r\n\r\n", 421},
		{"two Hosts", "GET /acl HTTP/1.1\r\n" + host + host + "\r\n", 400},
		{"absolute form of another host", "GET http://evil.example/acl HTTP/1.1\r\n" + host + "\r\n", 421},
		{"CONNECT", "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", 421},
		{"CONNECT to ourselves", "CONNECT " + e.addr + " HTTP/1.1\r\n" + host + "\r\n", 404},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", 404},
		{"GET *", "GET * HTTP/1.1\r\n" + host + "\r\n", 404},
		{"bad escape in the path", "GET /v1/topics/%zz HTTP/1.1\r\n" + host + "\r\n", 400},
		{"space in a header's name", "GET /acl HTTP/1.1\r\n" + host + "Authorization : Bearer x\r\n\r\n", 400},
		{"folded header", "GET /acl HTTP/1.1\r\n" + host + " folded\r\n\r\n", 400},
		{"NUL in a header", "GET /acl HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n", 400},
		{"two lengths", "POST /acl HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400},
		{"negative length", "POST /acl HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n", 400},
		{"length that is no number", "POST /acl HTTP/1.1\r\n" + host + "Content-Length: 1e3\r\n\r\n", 400},
		{"unknown transfer encoding", "POST /acl HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\n", 501},
		{"bad chunk", "POST /v1/topics HTTP/1.1\r\n" + host + "Authorization: " + adaBearer + "\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
		{"chunks without end", "POST /v1/topics HTTP/1.1\r\n" + host + "Authorization: " + adaBearer + "\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1000\r\n"+strings.Repeat("x", 0x1000)+"\r\n", 20), 413},
		{"length beyond everything", "POST /v1/topics HTTP/1.1\r\n" + host + "Authorization: " + adaBearer + "\r\nContent-Type: application/json\r\nContent-Length: 9223372036854775807\r\n\r\n" + strings.Repeat("x", maxBodyBytes+1), 413},
		{"huge header", "GET /acl HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", 431},
		{"header without end", "GET /acl HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", 100_000), 431},
		{"huge request line", "GET /" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\n" + host + "\r\n", 431},
		{"unknown expectation", "POST /v1/topics HTTP/1.1\r\n" + host + "Expect: miracles\r\nContent-Length: 1\r\n\r\n", 417},
		{"half closed in the header", "GET /acl HTTP/1.1\r\nHost:", 0},
		{"half closed in the body", "POST /v1/topics HTTP/1.1\r\n" + host + "Authorization: " + adaBearer + "\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", e.addr)
			testkit.Must(t, err)
			defer conn.Close()
			testkit.Must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
			go func() {
				_, _ = io.WriteString(conn, tt.bytes) // the server may well close before the end
				if strings.HasPrefix(tt.name, "half closed") {
					_ = conn.(*net.TCPConn).CloseWrite()
				}
			}()
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				if tt.status != 0 {
					t.Errorf("no answer: %v, want %d", err, tt.status)
				}
				return
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if tt.status != 0 && resp.StatusCode != tt.status {
				t.Errorf("status %d, want %d: %s", resp.StatusCode, tt.status, body)
			}
			if strings.Contains(string(body), canary) {
				t.Errorf("a token is in the answer: %s", body)
			}
		})
	}
	if a := e.do("GET", "/acl", ""); a.status != 200 {
		t.Errorf("afterwards: %d", a.status)
	}
}

// TestPublicURL checks which public URLs are accepted.
func TestPublicURL(t *testing.T) {
	for _, tt := range []struct {
		url       string
		plaintext bool
		ok        bool
	}{
		{"https://diaspora.example.org", false, true},
		{"https://diaspora.example.org:8443/", false, true},
		{"http://127.0.0.1:9090", false, true},
		{"http://[::1]:9090", false, true},
		{"http://localhost:9090", false, true},
		{"http://diaspora.example.org", true, true},
		{"http://diaspora.example.org", false, false},
		{"http://localhost.example.org", false, false},
		{"", false, false},
		{"127.0.0.1:9090", false, false},
		{"ftp://127.0.0.1", false, false},
		{"https://user:secret@example.org", false, false},
		{"https://example.org/path", false, false},
		{"https://example.org?query", false, false},
	} {
		_, err := New(Config{Claims: emptyClaims{}, Authenticator: identities{}, PublicURL: tt.url, InsecureAllowPlaintext: tt.plaintext})
		if (err == nil) != tt.ok {
			t.Errorf("New with PublicURL %q, InsecureAllowPlaintext %v = %v, want ok %v", tt.url, tt.plaintext, err, tt.ok)
		}
	}
	if _, err := New(Config{PublicURL: "https://example.org"}); err == nil {
		t.Error("New without Claims = nil")
	}
}
