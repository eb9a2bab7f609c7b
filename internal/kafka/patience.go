package kafka

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// patientConn moves a deadline forward as long as bytes pass, so that the deadline limits silence
// instead of the total time.
//
// The Kafka client allows a fixed time for writing a request and for reading its answer, whatever
// their size. Over a slow link, a batch of a megabyte does not arrive within that time. The client
// would send it again from the beginning, forever.
type patientConn struct {
	net.Conn
	progress         func() // called after each piece of a Write except the last; may be nil
	reading, writing deadline
	pieceSize        atomic.Int64 // how many bytes to write at once
}

// A write is only known to make progress when the kernel has taken a piece of it. So the first pieces
// are small, and so is the number of bytes that the kernel may take but not send yet: at 64 kbit/s the
// two together take 12 s. After each piece that takes less than quickWrite, the size of a piece
// doubles, so that soon a whole request is one piece. After a slower one, pieces are small again.
const (
	minPieceBytes = 32 << 10
	maxPieceBytes = 16 << 20
	unsentBytes   = 64 << 10
	quickWrite    = 20 * time.Millisecond
)

func newPatientConn(conn net.Conn, progress func()) net.Conn {
	if tcp, ok := conn.(*net.TCPConn); ok {
		limitUnsent(tcp, unsentBytes)
	}
	p := &patientConn{Conn: conn, progress: progress}
	p.pieceSize.Store(minPieceBytes)
	p.reading.apply, p.writing.apply = conn.SetReadDeadline, conn.SetWriteDeadline
	return p
}

func (p *patientConn) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if n > 0 {
		p.reading.extend()
	}
	return n, err
}

func (p *patientConn) Write(b []byte) (n int, err error) {
	for {
		began, size := time.Now(), p.pieceSize.Load()
		m, err := p.Conn.Write(b[n:min(n+int(size), len(b))])
		switch n += m; {
		case err != nil:
			return n, err
		case time.Since(began) > quickWrite:
			p.pieceSize.Store(minPieceBytes)
		case m == int(size):
			p.pieceSize.Store(min(2*size, maxPieceBytes))
		}
		if n == len(b) {
			return n, nil
		}
		p.writing.extend()
		if p.progress != nil {
			p.progress()
		}
	}
}

func (p *patientConn) SetReadDeadline(t time.Time) error  { return p.reading.set(t) }
func (p *patientConn) SetWriteDeadline(t time.Time) error { return p.writing.set(t) }

func (p *patientConn) SetDeadline(t time.Time) error {
	if err := p.reading.set(t); err != nil {
		return err
	}
	return p.writing.set(t)
}

// deadline is a read or write deadline that moves forward.
type deadline struct {
	mu    sync.Mutex    // guards limit; held while apply is called, so that the last call has effect
	limit time.Duration // the longest time without progress; 0 if the deadline does not move
	apply func(time.Time) error
}

// set sets the deadline. A deadline in the past does not move, because it is meant to interrupt a
// read or write.
func (d *deadline) set(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = 0
	if !t.IsZero() {
		d.limit = max(0, time.Until(t))
	}
	return d.apply(t)
}

func (d *deadline) extend() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.limit > 0 {
		_ = d.apply(time.Now().Add(d.limit)) // ignored: if the connection is broken, the next read or write fails
	}
}
