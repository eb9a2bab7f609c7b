package interop

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"

	"github.com/diaspora-streams/diaspora/internal/broker"
)

// The differential suite runs the embedded engine in a process of its own. So it can kill the
// engine as "kill -9" does, and a crash of the engine is a finding and does not end the suite. The
// process runs this test binary, started with engineDirEnv.
const engineDirEnv = "DIASPORA_DIFF_ENGINE_DIR"

// serveEngine opens the engine in dir and serves it until standard input ends. It writes its
// address to standard output, as the first line. The first line that a client sends is the subject
// that it signs in as; an empty line stands for the super user. Everything after it is passed to
// the engine.
func serveEngine(dir string) error {
	b, err := broker.Open(broker.Config{Dir: dir, Advertise: "engine.example:9092"})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if err := serveClient(b, conn); err != nil {
					fmt.Fprintln(os.Stderr, "differential engine:", err)
				}
			}()
		}
	}()
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	listener.Close()
	return b.Close()
}

func serveClient(b *broker.Broker, conn net.Conn) error {
	ctx := context.Background()
	in := bufio.NewReader(conn)
	subject, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	inner, err := dialEngine(ctx, b, strings.TrimSpace(subject))
	if err != nil {
		return err
	}
	defer inner.Close()
	go func() {
		io.Copy(inner, in)
		inner.Close()
	}()
	io.Copy(conn, inner)
	return nil
}

func dialEngine(ctx context.Context, b *broker.Broker, subject string) (net.Conn, error) {
	if subject != "" {
		conn, err := b.Dial(ctx)
		if err != nil {
			return nil, err
		}
		_, err = b.SignIn(ctx, conn, &wire{conn: conn}, subject)
		return conn, err
	}
	// The options of a client contain how the super user connects and signs in.
	client, err := kgo.NewClient(b.AdminOpts()...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	dial := client.OptValue(kgo.Dialer).(func(context.Context, string, string) (net.Conn, error))
	mechanisms := client.OptValue(kgo.SASL).([]sasl.Mechanism)
	conn, err := dial(ctx, "tcp", "engine.example:9092")
	if err != nil || len(mechanisms) == 0 {
		return conn, err
	}
	return conn, signIn(ctx, &wire{conn: conn}, mechanisms[0])
}
