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
	progress         func() // called after each piece; may be nil
	reading, writing deadline
	piece            atomic.Int64 // how many bytes to write at once
}

// pieceBytes is how much is written at once at first, and unsentBytes how much the kernel may hold
// back. Small values make progress visible: at 64 kbit/s the two together take 12 s. While pieces
// are written quickly, the size doubles each time, so that soon a request is a single piece. A slow
// piece sets it back.
const (
	pieceBytes    = 32 << 10
	maxPieceBytes = 16 << 20
	unsentBytes   = 64 << 10
	quickly       = 20 * time.Millisecond
)

func newPatientConn(conn net.Conn, progress func()) net.Conn {
	if tcp, ok := conn.(*net.TCPConn); ok {
		limitUnsent(tcp, unsentBytes)
	}
	p := &patientConn{Conn: conn, progress: progress}
	p.piece.Store(pieceBytes)
	p.reading.set, p.writing.set = conn.SetReadDeadline, conn.SetWriteDeadline
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
		began, size := time.Now(), p.piece.Load()
		m, err := p.Conn.Write(b[n:min(n+int(size), len(b))])
		switch n += m; {
		case err != nil:
			return n, err
		case time.Since(began) > quickly:
			p.piece.Store(pieceBytes)
		case m == int(size):
			p.piece.Store(min(2*size, maxPieceBytes))
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

func (p *patientConn) SetReadDeadline(t time.Time) error  { return p.reading.at(t) }
func (p *patientConn) SetWriteDeadline(t time.Time) error { return p.writing.at(t) }

func (p *patientConn) SetDeadline(t time.Time) error {
	if err := p.reading.at(t); err != nil {
		return err
	}
	return p.writing.at(t)
}

// deadline is a read or write deadline that moves forward.
type deadline struct {
	mu    sync.Mutex // guards the field below, and the order of set
	limit time.Duration
	set   func(time.Time) error
}

// at sets the deadline. A time in the past is meant to interrupt a call, so that deadline does not
// move.
func (d *deadline) at(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = 0
	if !t.IsZero() {
		d.limit = max(0, time.Until(t))
	}
	return d.set(t)
}

func (d *deadline) extend() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.limit > 0 {
		_ = d.set(time.Now().Add(d.limit)) // ignored: if the connection is broken, the next read or write fails
	}
}
