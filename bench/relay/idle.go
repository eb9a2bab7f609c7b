//go:build unix

package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/globus"
)

const (
	idleConnections       = 10_000
	connectionsPerSubject = 10
	idleGoal              = 32 << 10
)

// idle measures how much memory idle connections take at the gateway. The broker is a fake that only
// answers ApiVersions.
func (b bench) idle(ctx context.Context) (string, error) {
	// The gateway's process has two files open for each connection, and so has this one.
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return "", err
	}
	n := min(b.Scaled(idleConnections), (int(files.Max)-100)/2)
	s := &site{bench: b}
	if err := s.createCertificate(); err != nil {
		return "", err
	}
	broker, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer broker.Close()
	go serveVersions(broker)
	rows := [][]string{{"", "connections", "memory without them", "memory with them", "of each", "goal"}}
	for _, way := range []struct{ name, certificate string }{{"without TLS", ""}, {"with TLS", s.certificateFile()}} {
		before, after, err := idleMemory(ctx, gatewayConfig{Broker: broker.Addr().String(), CertificateFile: way.certificate}, n)
		if err != nil {
			return "", err
		}
		each, verdict := (after-before)/int64(n), "at most 32 KiB"
		if each > idleGoal {
			verdict += fmt.Sprintf(", missed by %.1f KiB", float64(each-idleGoal)/1024)
		}
		rows = append(rows, []string{way.name, fmt.Sprint(n), measure.Megabytes(before), measure.Megabytes(after), fmt.Sprintf("%.1f KiB", float64(each)/1024), verdict})
	}
	return "## Idle connections\n\nResident memory of a gateway's process once it no longer changes. Each connection has signed in and has one in front of a fake broker.\n" +
		fmt.Sprintf("There are %d connections, or as many as the limit on open files permits, two for each.\n\n", idleConnections) + measure.Table(rows), nil
}

// idleMemory returns the resident memory of a gateway without connections and with n of them.
func idleMemory(ctx context.Context, cfg gatewayConfig, n int) (before, after int64, err error) {
	g, err := startGateway(cfg)
	if err != nil {
		return 0, 0, err
	}
	defer g.stop()
	if before, err = measure.SettledRSS(ctx, g.pid); err != nil {
		return 0, 0, err
	}
	conns := make([]net.Conn, n)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	var logins errgroup.Group
	logins.SetLimit(16)
	for i := range conns {
		logins.Go(func() (err error) {
			if conns[i], err = net.Dial("tcp", g.address); err != nil {
				return err
			}
			conn := conns[i]
			if cfg.CertificateFile != "" {
				conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // of no interest here
			}
			conn.SetDeadline(time.Now().Add(time.Minute))
			return measure.SignIn(conn, globus.Secret(fmt.Sprintf("ada00000-0000-4000-8000-%012d", i/connectionsPerSubject)))
		})
	}
	if err := logins.Wait(); err != nil {
		return 0, 0, err
	}
	after, err = measure.SettledRSS(ctx, g.pid)
	return before, after, err
}

// serveVersions answers ApiVersions requests, in version 0 and without any versions.
func serveVersions(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			for {
				head := make([]byte, 12)
				if _, err := io.ReadFull(conn, head); err != nil {
					return
				}
				if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(head))-8); err != nil {
					return
				}
				response := kmsg.NewPtrApiVersionsResponse()
				response.Version = int16(binary.BigEndian.Uint16(head[6:]))
				answer := response.AppendTo(head[8:12:12])
				if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(answer))), answer...)); err != nil {
					return
				}
			}
		}()
	}
}
