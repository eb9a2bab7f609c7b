package gateway

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/globus"
)

func TestParseOAuthBearer(t *testing.T) {
	long := strings.Repeat("x", maxTokenBytes)
	for message, want := range map[string]saslMessage{
		"n,,\x01auth=Bearer abc\x01\x01":                              {Credentials{Secret: "abc"}, ""},
		"n,a=" + ada + ",\x01auth=Bearer abc\x01\x01":                 {Credentials{Secret: "abc"}, ada},
		"n,,\x01auth=bearer A-b_c.d~e+f/g==\x01\x01":                  {Credentials{Secret: "A-b_c.d~e+f/g=="}, ""},
		"n,,\x01auth=Bearer abc\x01k=v\x01logicalCluster=a b\x01\x01": {Credentials{Secret: "abc"}, ""},
		"n,,\x01host=x\x01auth=Bearer abc\x01\x01":                    {Credentials{Secret: "abc"}, ""},
		"n,,\x01auth=Bearer " + long + "\x01\x01":                     {Credentials{Secret: globus.Secret(long)}, ""},
	} {
		got, err := parseOAuthBearer([]byte(message))
		if err != nil || got != want {
			t.Errorf("parseOAuthBearer(%q) = %q for %q, %v; want %q for %q", message, got.Secret.Reveal(), got.authzid, err, want.Secret.Reveal(), want.authzid)
		}
	}
}

// badSASL are messages that are not valid OAUTHBEARER messages.
var badSASL = []string{
	"",
	"\x00",
	"n",
	"n,",
	"n,,",
	"n,,\x01",
	"n,,\x01\x01",
	"n,,\x01\x01\x01",
	"n,,auth=Bearer abc\x01\x01",
	"n,,\x01auth=Bearer abc",
	"n,,\x01auth=Bearer abc\x01",
	"n,,\x01auth=Bearer abc\x01\x01\x01",
	"n,,\x01auth=Bearer abc\x01\x01x",
	"n,,\x01auth=Bearer\x01\x01",
	"n,,\x01auth=Bearer \x01\x01",
	"n,,\x01auth=Bearer ==\x01\x01",
	"n,,\x01auth=Bearer  abc\x01\x01",
	"n,,\x01auth=Bearer abc \x01\x01",
	"n,,\x01auth=Bearer a b\x01\x01",
	"n,,\x01auth=Bearer a=b\x01\x01",
	"n,,\x01auth=Bearer abc\n\x01\x01",
	"n,,\x01auth=Bearer abc\x00\x01\x01",
	"n,,\x01auth=Bearer äbc\x01\x01",
	"n,,\x01auth=Bearer \"abc\"\x01\x01",
	"n,,\x01auth=Basic abc\x01\x01",
	"n,,\x01auth=abc\x01\x01",
	"n,,\x01auth\x01\x01",
	"n,,\x01AUTH=Bearer abc\x01\x01",
	"n,,\x01auth=Bearer abc\x01auth=Bearer abc\x01\x01",
	"n,,\x01auth=Bearer abc\x01auth=Bearer def\x01\x01",
	"n,,\x01key=value\x01\x01",
	"n,,\x01auth=Bearer abc\x01key\x01\x01",
	"n,,\x01auth=Bearer abc\x01=value\x01\x01",
	"n,,\x01auth=Bearer abc\x01key=\x01\x01",
	"n,,\x01auth=Bearer abc\x01k3y=value\x01\x01",
	"n,,\x01auth=Bearer abc\x01key=va\x00lue\x01\x01",
	"n,,\x01auth=Bearer abc\x01key=välue\x01\x01",
	"y,,\x01auth=Bearer abc\x01\x01",
	"p=tls-unique,,\x01auth=Bearer abc\x01\x01",
	",,\x01auth=Bearer abc\x01\x01",
	"n,a=,\x01auth=Bearer abc\x01\x01",
	"n,a=ada\x01auth=Bearer abc\x01\x01",
	"n,a=a,b,\x01auth=Bearer abc\x01\x01",
	"n,a=a=3Db,\x01auth=Bearer abc\x01\x01",
	"n,a=a\x00,\x01auth=Bearer abc\x01\x01",
	"n,b=ada,\x01auth=Bearer abc\x01\x01",
	"n,ada,\x01auth=Bearer abc\x01\x01",
	"n,,,\x01auth=Bearer abc\x01\x01",
	"\x00ada\x00password",
	"n,,n=ada,r=nonce",
	"n,,\x01auth=Bearer " + strings.Repeat("x", maxTokenBytes+1) + "\x01\x01",
}

func TestParseOAuthBearerRefuses(t *testing.T) {
	for _, message := range badSASL {
		got, err := parseOAuthBearer([]byte(message))
		if refused := (*refusal)(nil); !errors.As(err, &refused) || got != (saslMessage{}) {
			t.Errorf("parseOAuthBearer(%q) = %v, %v; want a refusal", message, got, err)
		}
	}
}

// FuzzSASL: every message that is accepted is valid, and the error of a rejected one reveals
// nothing of it.
func FuzzSASL(f *testing.F) {
	for _, message := range badSASL {
		f.Add([]byte(message))
	}
	f.Add([]byte("n,a=" + ada + ",\x01auth=Bearer abc\x01key=value\x01\x01"))
	f.Fuzz(func(t *testing.T, message []byte) {
		c, err := parseOAuthBearer(message)
		if err != nil {
			if len(message) > 40 && strings.Contains(err.Error(), string(message)) || c != (saslMessage{}) {
				t.Errorf("parseOAuthBearer(%q) = %v, %v; want no trace of it", message, c, err)
			}
			return
		}
		header := "n,,"
		if c.authzid != "" {
			header = "n,a=" + c.authzid + ","
		}
		token := c.Secret.Reveal()
		switch {
		case !strings.HasPrefix(string(message), header+"\x01"):
			t.Errorf("parseOAuthBearer(%q) finds the authorization ID %q", message, c.authzid)
		case token == "" || len(token) > maxTokenBytes || strings.ContainsAny(token, "\x00\x01 ,\r\n"):
			t.Errorf("parseOAuthBearer(%q) finds the token %q", message, token)
		case strings.Count(string(message), "\x01auth=") != 1 || !strings.Contains(string(message), " "+token+"\x01"):
			t.Errorf("parseOAuthBearer(%q) finds the token %q", message, token)
		}
	})
}

// TestRefusalsInWords sends every bad message to a gateway, in every form. The answer must be a
// sentence and must reveal nothing of what was sent.
func TestRefusalsInWords(t *testing.T) {
	t.Parallel()
	f := start(t, func(cfg *Config) { cfg.FailuresPerAddress = 10_000 })
	for i, message := range badSASL {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			c := f.dial(t)
			c.handshake(1)
			answer := c.ask(saslAuthenticate(int16(i%3), []byte(message))).AppendTo(nil)
			if !strings.Contains(string(answer), "OAUTHBEARER message is malformed") {
				t.Errorf("%q is answered with %q, want a sentence", message, answer)
			}
			c.wantClosed()
		})
	}
	f.dial(t).wantRefusal("no-token", "diaspora login")
	c := f.dial(t)
	f.tokens.issue("ada-token", ada, impatience)
	c.handshake(1)
	response := c.ask(saslAuthenticate(1, []byte("n,a="+bert+",\x01auth=Bearer ada-token\x01\x01"))).AppendTo(nil)
	if !strings.Contains(string(response), "authorization ID") {
		t.Errorf("another's authorization ID is answered with %q", response)
	}
}
