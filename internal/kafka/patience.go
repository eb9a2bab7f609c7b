package kafka

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// The Kafka client gives a request so many seconds to be written, and its answer so
// many to be read, however large they are: over a slow link a batch of a megabyte never
// arrives, is sent again from its beginning, and never arrives. Over a patientConn a deadline
// is about silence: it moves on as long as bytes pass.
type patientConn struct {
	net.Conn
	progress         func() // may be nil
	reading, writing deadline
	piece            atomic.Int64 // how much is written at once
}

// Written at once, at first, and held back by the kernel at most, so that there is progress
// to see. At 64 kbit/s the two together take 12 s. As long as pieces pass quickly each is twice
// as large as the one before: soon a request is one.
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

// deadline is one that moves on.
type deadline struct {
	mu    sync.Mutex // guards the field below, and the order of set
	limit time.Duration
	set   func(time.Time) error
}

// at sets the deadline. One that has passed is for interrupting, and does not move.
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
		_ = d.set(time.Now().Add(d.limit)) // what is wrong with the connection, reading and writing tell
	}
}
