package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/globus"
)

// counted is a source that makes a new token each time that one is refused.
type counted struct{ n int }

func (c *counted) name() globus.Secret { return globus.Secret(fmt.Sprintf("canary-token-%d", c.n)) }

func (c *counted) Token(context.Context) (globus.Token, error) {
	return globus.Token{AccessToken: c.name()}, nil
}

func (c *counted) Refused(token globus.Secret) {
	if token == c.name() {
		c.n++
	}
}

// TestTrial checks that refused tokens are replaced, but not again and again.
func TestTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &counted{}
		trial := NewTrial(source)
		refused := func(n int, want bool) {
			t.Helper()
			if got := trial.Refused(t.Context(), globus.Secret(fmt.Sprintf("canary-token-%d", n))); got != want {
				t.Errorf("token %d is refused, and trying again is %v, want %v", n, got, want)
			}
		}
		refused(0, true)
		refused(0, true) // on another connection: there is a newer token already
		refused(1, false)
		time.Sleep(trialPause)
		refused(1, true)
		refused(2, false)
		trial.Accepted()
		refused(2, true) // a new refusal
		if source.n != 3 {
			t.Errorf("%d tokens were replaced, want 3", source.n)
		}
		if NewTrial(globus.StaticToken(globus.Token{AccessToken: "x"})).Refused(t.Context(), "x") {
			t.Error("trying again with the only token there is")
		}
		if NewTrial(nil).Refused(t.Context(), "x") {
			t.Error("trying again without any token")
		}
	})
}

// TestTrialConn checks that every answer is passed on unchanged, except a refusal that is worth
// retrying.
func TestTrialConn(t *testing.T) {
	const id = 0x01020304
	login := func(version int16, token string) []byte {
		frame := binary.BigEndian.AppendUint32(nil, 0)
		frame = binary.BigEndian.AppendUint16(frame, uint16(kmsg.SASLAuthenticate))
		frame = binary.BigEndian.AppendUint16(frame, uint16(version))
		frame = binary.BigEndian.AppendUint32(frame, id)
		return append(frame, "client…n,,\x01auth=Bearer "+token+"\x01\x01"...)
	}
	answer := func(id uint32, rest ...byte) []byte {
		frame := binary.BigEndian.AppendUint32(nil, uint32(4+len(rest)))
		return append(binary.BigEndian.AppendUint32(frame, id), rest...)
	}
	refused := byte(kerr.SaslAuthenticationFailed.Code)
	for name, try := range map[string]struct {
		sent, answered []byte
		again          bool
	}{
		"cannot tell":     {login(1, "canary-token-0"), answer(id, append([]byte{0, refused, 0, byte(len(CannotTell))}, CannotTell...)...), false},
		"accepted":        {login(1, "canary-token-0"), answer(id, 0, 0, 1, 2, 3), false},
		"refused":         {login(1, "canary-token-0"), answer(id, 0, refused, 0, 0), true},
		"refused, tagged": {login(2, "canary-token-0"), answer(id, 0, 0, refused, 0, 0), true},
		"with tags":       {login(2, "canary-token-0"), answer(id, 1, 0, refused, 0, 0), false},
		"another code":    {login(1, "canary-token-0"), answer(id, 0, byte(kerr.IllegalSaslState.Code)), false},
		"another answer":  {login(1, "canary-token-0"), answer(7, 0, refused), false},
		"short":           {login(1, "canary-token-0"), answer(id, 0), false},
		"empty":           {login(1, "canary-token-0"), []byte{0, 0, 0, 0}, false},
		"huge":            {login(1, "canary-token-0"), append([]byte{0xff, 0xff, 0xff, 0xff}, answer(id, 0, refused)...), false},
		"negative code":   {login(1, "canary-token-0"), answer(id, 0xff, 0xff), false},
		"no token":        {[]byte("\x00\x00\x00\x08\x00\x24\x00\x01\x01\x02\x03\x04plain"), answer(id, 0, refused), false},
		"another request": {[]byte("\x00\x00\x00\x08\x00\x03\x00\x01\x01\x02\x03\x04auth=Bearer x\x01"), answer(id, 0, refused), false},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			conn := &trialConn{Conn: ours, trial: NewTrial(&counted{})}
			go func() {
				io.ReadFull(theirs, make([]byte, len(try.sent)))
				for _, b := range try.answered { // whatever the sizes of the reads
					theirs.Write([]byte{b})
				}
				theirs.Close()
			}()
			if _, err := conn.Write(try.sent); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(iotest.OneByteReader(conn))
			if again := errors.Is(err, errAnotherToken); again != try.again {
				t.Fatalf("read %x, %v; try again: %v, want %v", got, err, again, try.again)
			}
			if !try.again && (err != nil || !slices.Equal(got, try.answered)) {
				t.Errorf("read %x, %v, want %x", got, err, try.answered)
			}
		})
	}
}

// TestAnotherTokenIsRetried checks that the Kafka client treats the error as temporary.
func TestAnotherTokenIsRetried(t *testing.T) {
	if condition, _ := Explain(fmt.Errorf("sign in: %w", errAnotherToken)); condition != Unavailable {
		t.Errorf("Explain(%v) = %v, want Unavailable", errAnotherToken, condition)
	}
}
