package assemble

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
)

// Port is an address and the part that serves there. It can be stopped and started again. Its methods
// may be called concurrently. Stop may be called on nil, which stands for a port that was never opened.
type Port struct {
	Name    string // of the part that serves there, for errors
	Address string // host:port; once the port is open, with the real port

	// Serve accepts connections until its context ends, finishes the requests in flight, and closes
	// the listener. It must be set before Start is called.
	Serve func(context.Context, net.Listener) error

	// Wrap, if set, wraps the listener each time the port is opened.
	Wrap func(net.Listener) net.Listener

	mu      sync.Mutex   // guards the fields below
	ln      net.Listener // nil while closed
	serving bool
	end     func() error // closes the listener or, while serving, ends Serve and waits for it
}

// Open listens on the address. It does nothing if the port is open.
func (p *Port) Open() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open()
}

func (p *Port) open() error {
	if p.ln != nil {
		return nil
	}
	ln, err := net.Listen("tcp", p.Address)
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("another process, perhaps this service, listens at %s (%w)", p.Address, syscall.EADDRINUSE)
	}
	if err != nil {
		return fmt.Errorf("listen for %s: %w", p.Name, err)
	}
	if address := ln.Addr().String(); address != p.Address { // written only when the port number changes, because other goroutines read it later
		p.Address = address
	}
	if p.Wrap != nil {
		ln = p.Wrap(ln)
	}
	p.ln, p.end = ln, ln.Close
	return nil
}

// Start opens the port unless it is open, calls Serve in a goroutine, and returns. The channel is closed when
// Serve has returned; [Port.Stop] then returns its error.
func (p *Port) Start() (ended <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.serving {
		return nil, fmt.Errorf("%s is running", p.Name)
	}
	if err := p.open(); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.Background()) // ends with Stop
	ln, done := p.ln, make(chan struct{})
	var served error
	go func() {
		served = p.Serve(run, ln)
		close(done)
	}()
	p.serving, p.end = true, func() error {
		cancel()
		<-done
		return served
	}
	return done, nil
}

// Stop ends Serve, waits until it has finished the requests in flight, and returns its error. The port
// is free afterwards. It may be called twice.
func (p *Port) Stop() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln == nil {
		return nil
	}
	p.ln, p.serving = nil, false
	return p.end()
}
