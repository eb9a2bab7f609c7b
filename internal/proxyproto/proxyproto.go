// Package proxyproto accepts connections through proxies and load balancers that send the client's
// address at the beginning of each connection. It implements version 2 of the PROXY protocol
// (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).
//
// Only proxies in [Config.Trusted] can set the address of a connection. Start reading at [Listen].
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

	// maxRest limits what follows: the addresses, and optional fields, which are ignored.
	maxRest = 4096

	// maxReading limits the connections whose header is being read at the same time.
	maxReading = 1024
)

// Local is the header of a connection of the proxy's own, such as a health check.
const Local = signature + "\x20\x00\x00\x00"

// errLocal means that a connection has a header such as [Local].
var errLocal = errors.New("LOCAL")

// readHeader reads the header at the beginning of a connection. It returns the client's address, or
// errLocal.
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
		return netip.AddrPort{}, errLocal // ignores any addresses, as the protocol requires
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

// Config configures the listener that [Listen] returns.
type Config struct {
	// Trusted are the networks of the proxies. Every connection from there must begin with a
	// header, which must arrive within Timeout. Connections from other addresses are passed on
	// unchanged. If one begins with a header all the same, the server sees it as garbage.
	Trusted []netip.Prefix
	Timeout time.Duration

	// Diagnostics receives reports of connections from trusted proxies with an invalid header.
	// Required.
	Diagnostics *slog.Logger
}

// Listen returns a listener whose connections report the client's address, not that of a proxy
// between the client and ln. If there are no trusted proxies, it returns ln itself.
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
	errs      chan error    // errors of the underlying Accept
	reading   chan struct{} // a semaphore: holds one value for each header that is being read
	run       context.Context
	stop      context.CancelFunc
	warnOften rate.Sometimes
}

func (l *listener) accept() {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			select {
			case l.errs <- err: // the caller of Accept decides whether to continue
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

// identify reads the header of a connection from a proxy, and passes the connection on.
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

// proxied is a connection through a proxy. It reports the client's address.
type proxied struct {
	net.Conn
	client net.Addr
}

func (c *proxied) RemoteAddr() net.Addr { return c.client }

// CloseWrite closes the sending side, as [net.TCPConn.CloseWrite] does.
func (c *proxied) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
