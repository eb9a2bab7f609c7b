package gateway

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

const canSplice = true

const (
	// pipeBytes is how much is spliced at a time. With 64 KiB, broker, gateway and client would wake
	// each other up more often than they do anything else.
	pipeBytes = 1 << 20

	fSetPipeSize   = 1031 // F_SETPIPE_SZ
	spliceNonblock = 2    // SPLICE_F_NONBLOCK
)

// splice passes n bytes of an answer from the broker to the client without copying them. io.Copy does
// that too, but it has a single deadline for all bytes, and wakes up whenever a few of them have
// arrived. If the process has no file descriptors left for a pipe, splice does nothing. left is how
// many bytes it has not passed on.
func splice(to, from *net.TCPConn, n int) (left int, err error) {
	source, err := from.SyscallConn()
	if err != nil {
		return n, err
	}
	target, err := to.SyscallConn()
	if err != nil {
		return n, err
	}
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return n, nil
	}
	defer syscall.Close(pipe[0])
	defer syscall.Close(pipe[1])
	syscall.Syscall(syscall.SYS_FCNTL, uintptr(pipe[1]), fSetPipeSize, pipeBytes) // if it fails, the pipe is smaller

	low := 1 // how many bytes the broker must have sent until the gateway wakes up
	defer func() {
		if low > 1 {
			source.Control(func(fd uintptr) { setLow(fd, 1) })
		}
	}()
	unread := 0 // of the chunk that the client has two minutes to read
	for n > 0 {
		want := min(n, pipeBytes)
		piped, err := move(source.Read, func(fd uintptr) (int64, error) {
			m, err := syscall.Splice(int(fd), nil, pipe[1], nil, want, spliceNonblock)
			// Nothing has arrived. The rest of the answer is at least as long as this, so it will.
			if err == syscall.EAGAIN && low != want && setLow(fd, want) == nil {
				low = want
			}
			return int64(m), err
		})
		if err != nil {
			return n, err
		}
		if piped == 0 {
			return n, io.ErrUnexpectedEOF
		}
		n -= piped
		for piped > 0 {
			if unread <= 0 {
				to.SetWriteDeadline(time.Now().Add(writeTimeout))
				unread = chunkBytes
			}
			sent, err := move(target.Write, func(fd uintptr) (int64, error) {
				m, err := syscall.Splice(pipe[0], nil, int(fd), nil, piped, spliceNonblock)
				return int64(m), err
			})
			if err != nil {
				return n, err
			}
			piped -= sent
			unread -= sent
		}
	}
	return 0, nil
}

func setLow(fd uintptr, n int) error {
	return syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, n)
}

// move calls splice, through the method Read or Write of a connection, until it moves something.
func move(wait func(func(fd uintptr) bool) error, splice func(fd uintptr) (int64, error)) (n int, err error) {
	waited := wait(func(fd uintptr) bool {
		var m int64
		for m, err = splice(fd); err == syscall.EINTR; {
			m, err = splice(fd)
		}
		n = int(m)
		return err != syscall.EAGAIN
	})
	if waited != nil {
		return 0, waited
	}
	return n, os.NewSyscallError("splice", err)
}
