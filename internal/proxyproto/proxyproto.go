// Package proxyproto takes connections from proxies and load balancers that say in front of
// each connection whose it is: version 2 of the PROXY protocol
// (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).
package proxyproto

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

const (
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	fixed     = len(signature) + 4 // bytes before the addresses

	// maxRest bounds what follows: addresses, and further fields that nobody reads here.
	maxRest = 4096

	// maxReading bounds the connections whose header is being read.
	maxReading = 1024
)

// errLocal says that the connection is the proxy's own, to see whether somebody answers.
var errLocal = errors.New("LOCAL")

// readHeader reads the header in front of a connection. It returns who connected to the
// proxy, or errLocal.
func readHeader(r io.Reader) (netip.AddrPort, error) {
	head := make([]byte, fixed)
	if _, err := io.ReadFull(r, head); err != nil {
		return netip.AddrPort{}, err
	}
	if !bytes.HasPrefix(head, []byte(signature)) {
		return netip.AddrPort{}, errors.New("the connection does not begin with a PROXY header of version 2")
	}
	command, family, size := head[12], head[13], int(binary.BigEndian.Uint16(head[14:]))
	if command>>4 != 2 {
		return netip.AddrPort{}, fmt.Errorf("the PROXY header has version %d, want 2", command>>4)
	}
	if size > maxRest {
		return netip.AddrPort{}, fmt.Errorf("the PROXY header has %d bytes, want at most %d", fixed+size, fixed+maxRest)
	}
	rest := make([]byte, size)
	if _, err := io.ReadFull(r, rest); err != nil {
		return netip.AddrPort{}, err
	}
	switch command & 0xf {
	case 0:
		return netip.AddrPort{}, errLocal // whatever addresses there are
	case 1:
	default:
		return netip.AddrPort{}, fmt.Errorf("the PROXY header has the unknown command %d", command&0xf)
	}
	// Source address, destination address, source port, destination port.
	length := 0
	switch family {
	case 0x11: // TCP over IPv4
		length = 4
	case 0x21: // TCP over IPv6
		length = 16
	default:
		return netip.AddrPort{}, fmt.Errorf("the PROXY header is about something else than TCP (0x%02x)", family)
	}
	if len(rest) < 2*length+4 {
		return netip.AddrPort{}, fmt.Errorf("the PROXY header has %d bytes of addresses, want %d", len(rest), 2*length+4)
	}
	addr, _ := netip.AddrFromSlice(rest[:length])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(rest[2*length:])), nil
}

// Config says which proxies a [Listener] believes.
type Config struct {
	// Trusted are the networks of the proxies. Each of their connections must begin with a
	// header, within Timeout. Those of others must not: they are handed on as they are, and
	// to whoever serves them a header is garbage.
	Trusted []netip.Prefix
	Timeout time.Duration

	// Diagnostics receives what is wrong with proxies' headers.
	Diagnostics *slog.Logger
}

// Listen returns a listener whose connections have the addresses of clients, rather than those of
// proxies between them and ln. Without proxies it is ln itself.
func Listen(ln net.Listener, cfg Config) net.Listener {
	if len(cfg.Trusted) == 0 {
		return ln
	}
	l := &listener{
		Listener: ln, cfg: cfg, conns: make(chan net.Conn), errs: make(chan error),
		reading: make(chan struct{}, maxReading), warnOften: rate.Sometimes{Interval: 10 * time.Second},
	}
	l.run, l.stop = context.WithCancel(context.Background())
	go l.accept()
	return l
}

type listener struct {
	net.Listener
	cfg       Config
	conns     chan net.Conn
	errs      chan error    // of the Listener
	reading   chan struct{} // holds one for each header that is being read
	run       context.Context
	stop      context.CancelFunc
	warnOften rate.Sometimes
}

func (l *listener) accept() {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			select {
			case l.errs <- err: // the caller decides whether to go on
				if errors.Is(err, net.ErrClosed) {
					return
				}
				continue
			case <-l.run.Done():
				return
			}
		}
		if !l.trusts(conn) {
			l.hand(conn)
			continue
		}
		select {
		case l.reading <- struct{}{}:
			go func() {
				defer func() { <-l.reading }()
				l.identify(conn)
			}()
		case <-l.run.Done():
			conn.Close()
			return
		}
	}
}

func (l *listener) trusts(conn net.Conn) bool {
	peer, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return false
	}
	for _, p := range l.cfg.Trusted {
		if p.Contains(peer.Addr().Unmap().WithZone("")) {
			return true
		}
	}
	return false
}

// identify reads a proxy's header, and hands the connection on.
func (l *listener) identify(conn net.Conn) {
	conn.SetReadDeadline(time.Now().Add(l.cfg.Timeout))
	defer context.AfterFunc(l.run, func() { conn.Close() })()
	client, err := readHeader(conn)
	switch {
	case errors.Is(err, errLocal):
	case err != nil:
		conn.Close()
		l.warnOften.Do(func() {
			l.cfg.Diagnostics.Warn("connection of a trusted proxy closed; let the proxy send PROXY protocol version 2, or take its network out of trusted-proxies",
				"proxy", conn.RemoteAddr().String(), "err", err)
		})
		return
	default:
		conn = &proxied{conn, net.TCPAddrFromAddrPort(client)}
	}
	conn.SetReadDeadline(time.Time{})
	l.hand(conn)
}

func (l *listener) hand(conn net.Conn) {
	select {
	case l.conns <- conn:
	case <-l.run.Done():
		conn.Close()
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case err := <-l.errs:
		return nil, err
	case <-l.run.Done():
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.stop()
	return l.Listener.Close()
}

// proxied is a connection through a proxy.
type proxied struct {
	net.Conn
	client net.Addr
}

func (c *proxied) RemoteAddr() net.Addr { return c.client }

// CloseWrite ends what is sent, as on any TCP connection.
func (c *proxied) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
