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

// callback serves the page on a loopback address to which Globus Auth redirects the browser.
type callback struct {
	auth   *authorization
	url    string
	server *http.Server

	result chan result   // gets the first response that belongs to this login
	strays chan struct{} // gets a value when a response belongs to another login

	once     sync.Once
	closing  sync.Once
	finished chan struct{} // closed when the outcome of the login is known
	outcome  string        // text for the page; set before finished is closed
	failed   bool
	pages    sync.RWMutex   // read-locked while a page is being written
	serving  sync.WaitGroup // for the goroutine of the server
}

// result is the authorization code, or why there is none.
type result struct {
	code Secret
	err  error
}

const (
	pageTimeout    = 2 * time.Second // how long to wait until the browser has the last page
	maxHeaderBytes = 16 << 10
)

// listenForCallback starts the server, which runs until finish is called.
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
	p.serving.Go(func() { p.server.Serve(l) }) // returns after finish
	return p, nil
}

// ServeHTTP takes the authorization code, waits until the outcome of the login is known, and
// answers with a page about it. A request that does not belong to this login does not affect it.
func (p *callback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path != "/":
		http.NotFound(w, r) // browsers request /favicon.ico
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
	// A browser may repeat the request, but the code must be used only once.
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

// finish shows the outcome of the login to the browser, and stops the server.
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
