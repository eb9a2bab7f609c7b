package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/globus"
)

// countingUpstream counts what the gateway sends to the broker.
type countingUpstream struct {
	Upstream
	sent atomic.Int64
}

type countingConn struct {
	net.Conn
	sent *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	c.sent.Add(int64(len(p)))
	return c.Conn.Write(p)
}

func (u *countingUpstream) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := u.Upstream.Dial(ctx)
	return countingConn{conn, &u.sent}, err
}

func (u *countingUpstream) SignIn(ctx context.Context, nc net.Conn, ask kmsg.Requestor, principal string) (time.Time, error) {
	return u.Upstream.SignIn(ctx, nc.(countingConn).Conn, ask, principal)
}

// TestHalfRequestsStayHere: the broker must see nothing of an incomplete request, because it would
// allocate memory for all of it.
func TestHalfRequestsStayHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := new(countingUpstream)
		f := startInMemory(t, func(cfg *Config) { upstream.Upstream, cfg.Upstream = cfg.Upstream, upstream })
		f.tokens.issue("ada-token", ada, time.Hour)
		for _, size := range []int{100, readerBytes, 64 << 10, 1 << 20, 32 << 20} {
			c := f.login(t, "ada-token")
			synctest.Wait()
			before := upstream.sent.Load()
			c.send(sized(size, flexHead(keyProduce, 9)))
			c.send(make([]byte, min(size/2, 300<<10)))
			synctest.Wait()
			if sent := upstream.sent.Load() - before; sent != 0 {
				t.Errorf("of half a request of %d bytes the broker gets %d", size, sent)
			}
			c.Close()
			synctest.Wait()
		}
	})
}

// TestSlowUploadsOfMany has many subjects announce requests that use up the whole memory budget,
// and send almost nothing. Another subject's request must get through before theirs time out.
func TestSlowUploadsOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.claim(t, "weather", bert)
		f.tokens.issue("bert-token", bert, time.Hour)
		good := f.login(t, "bert-token")
		const each = 32 << 20
		for n := range requestBudgetBytes / each {
			token := fmt.Sprint("token-", n/2)
			f.tokens.issue(globus.Secret(token), uuid.NewSHA1(uuid.Nil, []byte(token)).String(), time.Hour)
			c := f.login(t, token)
			c.send(sized(each-8, flexHead(keyProduce, 9)))
			go io.Copy(io.Discard, c)
		}
		synctest.Wait()
		request := produceRequest(9)
		request.Topics[0].Partitions[0].Records = make([]byte, 100_000)
		b := appendRequest(request, 7)
		good.SetDeadline(time.Time{})
		began := time.Now()
		go good.send(b)
		if _, err := good.response(request, 7); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 2*maxUploadTime {
			t.Errorf("a request of another took %v, want %v or little more", took, maxUploadTime)
		}
	})
}

// TestBuffersFit: a buffer has room for the request, and little more.
func TestBuffersFit(t *testing.T) {
	last := -1
	for n := 1; n <= 1<<maxPooledBits; n += 1 + n/100 {
		class, size := sizeClass(n)
		if class < last || class >= len(buffers) || size < n || size > max(1<<minPooledBits, n+n/4) {
			t.Errorf("sizeClass(%d) = %d, %d after class %d", n, class, size, last)
		}
		b, reuse := buffer(n)
		if len(b) != n || cap(b) != size {
			t.Errorf("buffer(%d) has %d bytes of %d, want %d of %d", n, len(b), cap(b), n, size)
		}
		reuse()
		last = class
	}
	if b, _ := buffer(1<<maxPooledBits + 4); len(b) != 1<<maxPooledBits+4 {
		t.Errorf("a buffer of more than is kept has %d bytes", len(b))
	}
}
