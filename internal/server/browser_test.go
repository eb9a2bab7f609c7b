//go:build browser

// These tests drive Debian's chromium (apt-get install chromium), and fail without it:
//
//	go test -tags browser ./internal/server
//
// DIASPORA_SCREENSHOTS names a folder for screenshots of every page.

package server

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// browser is one browser tab. It records the requests to the server and the errors that it reports.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu         sync.Mutex // guards the fields below
	requests   []string   // addresses, referrers and bodies
	complaints []string
}

func openBrowser(t *testing.T) *browser {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithAllocatorOptions(chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(900, 1000)))
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx}
	err := chromedp.Listen(ctx, func(event any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			b.requests = append(b.requests, e.Request.URL)
			for _, v := range e.Request.Headers {
				b.requests = append(b.requests, fmt.Sprint(v))
			}
		case *log.EventEntryAdded:
			b.complaints = append(b.complaints, e.Entry.Text)
		case *runtime.EventExceptionThrown:
			b.complaints = append(b.complaints, e.ExceptionDetails.Text)
		}
	})
	testkit.Must(t, err)
	return b
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	testkit.Must(b.t, chromedp.Do(b.ctx, actions...))
}

// open goes to a URL and waits for the form or the heading.
func (b *browser) open(address string) {
	b.t.Helper()
	b.do(chromedp.Navigate(address), chromedp.WaitVisible(chromedp.CSS("h1")))
}

// call sends a command of the DevTools protocol.
func call[P, R any](b *browser, command cdp.Command[P, R], params P) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, command, params); err != nil {
		b.t.Fatal(err)
	}
}

// js evaluates an expression in the page.
func (b *browser) js(expression string) string {
	b.t.Helper()
	result, err := chromedp.Run(b.ctx, chromedp.Evaluate[string]("String("+expression+")"))
	testkit.Must(b.t, err)
	return result
}

func (b *browser) value(id string) string { return b.js("document.getElementById('" + id + "').value") }

// fill types into the given fields and submits the form.
func (b *browser) fill(subject, token, topic string) {
	b.t.Helper()
	for id, text := range map[string]string{"subject": subject, "token": token, "topic": topic} {
		if text != "" {
			b.do(chromedp.Clear(chromedp.ID(id)), chromedp.SendKeys(chromedp.ID(id), text))
		}
	}
	b.do(chromedp.Click(chromedp.CSS("#claim button")))
}

func (b *browser) waitFor(selector string) {
	b.t.Helper()
	b.do(chromedp.WaitVisible(chromedp.CSS(selector)))
}

// clean checks that the browser reported only errors that are allowed, and that no URL or header of
// a request had a token in it.
func (b *browser) clean(allowed string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.complaints {
		if allowed == "" || !strings.Contains(c, allowed) {
			b.t.Errorf("the browser complains: %s", c)
		}
	}
	for _, r := range b.requests {
		if strings.Contains(r, canary) {
			b.t.Errorf("a token went out in %s", r)
		}
	}
}

func (b *browser) shot(name string) {
	dir := os.Getenv("DIASPORA_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	testkit.Must(b.t, err)
	err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644))
	testkit.Must(b.t, err)
}

// TestBrowserRoundTrip claims a topic with the form and opens the link of the answer in a new tab.
// There the form is filled in, and it claims another topic.
func TestBrowserRoundTrip(t *testing.T) {
	e := start(t, withClaims(openClaims(t)))
	b := openBrowser(t)
	b.open(e.url + "/")
	b.shot("landing")
	b.do(chromedp.Click(chromedp.CSS(".button")))
	b.waitFor("#claim")
	b.shot("form")
	b.fill(ada, adaToken, "weather")
	b.waitFor("#form-link")
	b.shot("claimed")
	if got := b.js("document.querySelector('h1').textContent"); got != "weather is yours" {
		t.Errorf("h1 = %q", got)
	}
	if got := b.js("document.title + document.activeElement.tagName"); got != "weather · Diaspora StreamsH1" {
		t.Errorf("title and focus = %q", got)
	}
	if got := b.js("location.href"); got != e.url+"/acl" {
		t.Errorf("the address is %s", got)
	}
	if got := b.js("sessionStorage.length + localStorage.length + document.cookie"); got != "0" {
		t.Errorf("the page keeps something: %s", got)
	}
	if got := b.js("document.querySelector('main').innerText"); strings.Contains(got, canary) {
		t.Errorf("the token can be read over the shoulder:\n%s", got)
	}
	link := b.js("document.getElementById('form-link').href")
	if want := e.url + "/acl?subject=" + ada + "&topic=weather#token=" + url.QueryEscape(adaToken); link != want {
		t.Errorf("the link is %s, want %s", link, want)
	}

	fresh := openBrowser(t)
	fresh.open(link)
	if s, k, n := fresh.value("subject"), fresh.value("token"), fresh.value("topic"); s != ada || k != adaToken || n != "weather" {
		t.Errorf("the link fills the form with %q, %q, %q", s, k, n)
	}
	if got := fresh.js("location.href"); strings.Contains(got, "token") {
		t.Errorf("the token stays in the address: %s", got)
	}
	fresh.fill("", "", "snow_2")
	fresh.waitFor("#form-link")
	if got := fresh.js("document.querySelector('h1').textContent"); got != "snow_2 is yours" {
		t.Errorf("h1 = %q", got)
	}
	b.clean("")
	fresh.clean("")
}

// TestBrowserFragmentOnOpenPage checks that the token is filled in when the link is pasted into a
// tab that shows the form already, although that loads no page.
func TestBrowserFragmentOnOpenPage(t *testing.T) {
	e := start(t)
	b := openBrowser(t)
	b.open(e.url + "/acl?topic=weather")
	b.js("location.hash = 'token=dev%2Bat%3D" + canary + "'")
	if _, err := chromedp.Run(b.ctx, chromedp.Poll[bool]("document.getElementById('token').value !== ''")); err != nil {
		t.Fatal(err)
	}
	if got := b.value("token"); got != "dev+at="+canary {
		t.Errorf("token = %q", got)
	}
	if got := b.js("location.href"); got != e.url+"/acl?topic=weather" {
		t.Errorf("the address is %s", got)
	}
	b.clean("")
}

// TestBrowserTokenInQuery checks that links in the old format still fill the form, with a warning.
func TestBrowserTokenInQuery(t *testing.T) {
	e := start(t)
	b := openBrowser(t)
	b.open(e.url + "/acl?subject=" + ada + "&token=" + adaToken + "&topic=weather")
	b.waitFor(".warn")
	b.shot("token-in-query")
	if s, k, n := b.value("subject"), b.value("token"), b.value("topic"); s != ada || k != adaToken || n != "weather" {
		t.Errorf("the form has %q, %q, %q", s, k, n)
	}
	if got := b.js("location.href"); strings.Contains(got, canary) {
		t.Errorf("the token stays in the address: %s", got)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, r := range b.requests {
		if i > 0 && strings.Contains(r, canary) && !strings.HasPrefix(r, e.url+"/acl?") {
			t.Errorf("the token went on to %s", r)
		}
	}
}

// TestBrowserProblem checks that after a refused claim the form is shown as it was filled in, with
// the reason.
func TestBrowserProblem(t *testing.T) {
	service := openClaims(t)
	e := start(t, withClaims(service))
	b := openBrowser(t)
	b.open(e.url + "/acl")
	b.fill(bob, adaToken, "weather")
	b.waitFor(".bad")
	b.shot("problem")
	if got := b.js("document.querySelector('.bad').innerText"); !strings.Contains(got, "somebody other than the subject claim") {
		t.Errorf("the page says %q", got)
	}
	if s, k, n := b.value("subject"), b.value("token"), b.value("topic"); s != bob || k != adaToken || n != "weather" {
		t.Errorf("the form has %q, %q, %q", s, k, n)
	}
	b.js("document.getElementById('subject').value = ''") // the button Clear clears only what came with the page
	b.fill(ada, "", "")
	b.waitFor("#form-link")
	b.clean("403 (Forbidden)")
}

// TestBrowserWithoutScripts makes a claim with scripts disabled.
func TestBrowserWithoutScripts(t *testing.T) {
	e := start(t, withClaims(openClaims(t)))
	b := openBrowser(t)
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.open(e.url + "/acl?subject=" + ada + "&topic=weather")
	b.fill("", adaToken, "")
	b.waitFor("#form-link")
	b.shot("claimed-without-scripts")
	attributes, err := chromedp.Run(b.ctx, chromedp.Attributes(chromedp.ID("form-link")))
	testkit.Must(t, err)
	link := attributes["href"]
	note, err := chromedp.Run(b.ctx, chromedp.TextContent(chromedp.ID("token-note")))
	testkit.Must(t, err)
	if link != e.url+"/acl?subject="+ada+"&topic=weather" || !strings.Contains(note, "without your access token") {
		t.Errorf("the link is %s, and the page says %q", link, note)
	}
	b.open(link)
	b.fill("", expiredToken, "")
	b.waitFor(".bad")
	b.clean("401 (Unauthorized)")
}

// TestBrowserLooks takes screenshots for people to look at, and checks that nothing is wider than
// the screen.
func TestBrowserLooks(t *testing.T) {
	e := start(t, withClaims(openClaims(t)))
	for _, look := range []struct {
		name   string
		scheme string
		width  int64
	}{{"phone", "light", 360}, {"dark", "dark", 900}} {
		b := openBrowser(t)
		call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: look.scheme}}})
		b.do(chromedp.EmulateViewport(look.width, 800))
		narrow := func(name string) {
			b.shot(look.name + "-" + name)
			if got := b.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth"); got != "true" {
				t.Errorf("%s: %s is wider than the screen", look.name, name)
			}
		}
		b.open(e.url + "/")
		narrow("landing")
		b.open(e.url + "/acl")
		b.fill(ada, adaToken, "wea_"+strings.Repeat("ther", 15)+look.name)
		b.waitFor("#form-link")
		narrow("claimed")
		b.open(e.url + "/acl")
		b.fill(ada, expiredToken, "weather")
		b.waitFor(".bad")
		narrow("problem")
	}
}
