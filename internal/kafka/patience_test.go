package kafka

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slowPipe returns the two ends of a connection, between which trickle passes bytes. Both are
// closed at the end of the test.
func slowPipe(t *testing.T) (near, far net.Conn, trickling *sync.WaitGroup) {
	near, far = net.Pipe()
	trickling = new(sync.WaitGroup)
	t.Cleanup(func() {
		near.Close()
		far.Close()
		trickling.Wait()
	})
	return near, far, trickling
}

// trickle passes that many bytes per second, until one of the two is closed.
func trickle(to io.Writer, from io.Reader, bytes int) {
	buf := make([]byte, bytes)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		time.Sleep(time.Second)
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// TestPatience checks that a deadline does not end a transfer that makes progress, and ends one
// that does not.
func TestPatience(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far, trickling := slowPipe(t)
		pieces := 0
		conn := newPatientConn(near, func() { pieces++ })

		trickling.Go(func() { trickle(io.Discard, far, 8<<10) })
		conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
		large := make([]byte, 1<<20)
		if n, err := conn.Write(large); n != len(large) || err != nil {
			t.Errorf("a megabyte that takes two minutes: Write = %d, %v", n, err)
		}
		if want := len(large)/minPieceBytes - 1; pieces != want {
			t.Errorf("told of %d pieces, want %d", pieces, want)
		}
		if n, err := conn.Write(nil); n != 0 || err != nil {
			t.Errorf("Write of nothing = %d, %v", n, err)
		}

		trickling.Go(func() { trickle(far, bytes.NewReader(large), 8<<10) })
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := io.ReadFull(conn, make([]byte, len(large))); err != nil {
			t.Errorf("a megabyte that takes two minutes: read %d, %v", n, err)
		}
		began := time.Now()
		if _, err := conn.Read(large); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > 11*time.Second {
			t.Errorf("Read from one who is silent = %v after %v, want the deadline after 10s", err, time.Since(began))
		}
	})
}

// TestPatienceEnds checks that a call in progress can be interrupted, and that one deadline does
// not affect the other.
func TestPatienceEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far, trickling := slowPipe(t)
		conn := newPatientConn(near, nil)
		trickling.Go(func() { trickle(io.Discard, far, 8<<10) })
		conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
		time.AfterFunc(30*time.Second, func() { conn.SetDeadline(time.Now()) }) // the client does this when it is closed
		began := time.Now()
		if _, err := conn.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > 31*time.Second {
			t.Errorf("Write = %v after %v, want the deadline after 30s", err, time.Since(began))
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read = %v, want the deadline", err)
		}
	})
}
