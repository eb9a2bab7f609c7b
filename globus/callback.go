package globus

import (
	"errors"
	"fmt"
	"html"
	"io"
	"log"
	"net/http"
	"sync"
	"time"
)

// callback is the page on a loopback address that the browser comes back to.
type callback struct {
	auth   *authorization
	url    string
	server *http.Server

	result chan result   // gets the first answer that belongs to this login
	strays chan struct{} // gets a note of answers that belong to another

	once     sync.Once
	closing  sync.Once
	finished chan struct{} // closed when the outcome is known
	outcome  string        // for the page; set before finished is closed
	failed   bool
	pages    sync.RWMutex   // held for reading while a page is being written
	serving  sync.WaitGroup // the server
}

type result struct {
	code Secret
	err  error
}

const (
	pageTimeout    = 2 * time.Second // for the last page to reach the browser
	maxHeaderBytes = 16 << 10
)

// listenForCallback serves the page until finish is called.
func listenForCallback(a *authorization) (*callback, error) {
	l, err := a.opts.listen()
	if err != nil {
		return nil, err
	}
	p := &callback{
		auth:     a,
		url:      "http://" + l.Addr().String(),
		result:   make(chan result, 1),
		strays:   make(chan struct{}, 1),
		finished: make(chan struct{}),
	}
	p.server = &http.Server{
		Handler:           p,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	p.serving.Go(func() { p.server.Serve(l) }) // ends with finish
	return p, nil
}

// ServeHTTP takes the code and answers when it is known whether the login
// succeeded. A request that is not this login's does it no harm.
func (p *callback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path != "/":
		http.NotFound(w, r) // browsers ask for an icon
		return
	case r.Method != http.MethodGet:
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	p.pages.RLock()
	defer p.pages.RUnlock()
	code, err := p.auth.readRedirect(r.URL.Query())
	if errors.Is(err, errOtherLogin) {
		select {
		case p.strays <- struct{}{}:
		default:
		}
		writePage(w, http.StatusBadRequest, "This page belongs to another login. Please use the newest address that the program has shown.")
		return
	}
	// A browser may ask twice; the code goes on once.
	p.once.Do(func() { p.result <- result{code, err} })
	select {
	case <-p.finished:
	case <-r.Context().Done():
		return
	}
	status := http.StatusOK
	if p.failed {
		status = http.StatusBadRequest
	}
	writePage(w, status, p.outcome)
}

// finish tells the browser how the login ended, and stops listening.
func (p *callback) finish(err error, who string) {
	p.closing.Do(func() {
		switch {
		case who == "" && errors.Is(err, ErrDenied):
			p.outcome, p.failed = "The login was denied. You can close this window.", true
		case who == "":
			p.outcome, p.failed = "The login failed. Please see the program for the reason.", true
		case err != nil:
			p.outcome, p.failed = fmt.Sprintf("You are logged in as %s, but there was a problem. Please see the program.", who), true
		default:
			p.outcome = fmt.Sprintf("You are logged in as %s. You can close this window.", who)
		}
		close(p.finished)
		written := make(chan struct{})
		go func() {
			p.pages.Lock()
			close(written)
			p.pages.Unlock()
		}()
		select {
		case <-written:
		case <-time.After(pageTimeout):
		}
		p.server.Close()
		p.serving.Wait()
	})
}

func writePage(w http.ResponseWriter, status int, text string) {
	body := "<!doctype html><html lang=en><meta charset=utf-8><title>Login</title>" +
		"<meta name=viewport content=\"width=device-width\">" +
		"<body style=\"font:1.1rem/1.5 system-ui,sans-serif;margin:15vh auto;max-width:32rem;padding:0 1rem\"><p>" +
		html.EscapeString(text) + "\n"
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", fmt.Sprint(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	h.Set("Connection", "close")
	w.WriteHeader(status)
	io.WriteString(w, body)
	http.NewResponseController(w).Flush()
}
