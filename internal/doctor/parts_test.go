package doctor

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"DIASPORA_UR":        "DIASPORA_URL",
		"diaspora_profile":   "DIASPORA_PROFILE",
		"DIASPORA_CAFILE":    "DIASPORA_CA_FILE",
		"DIASPORA_FROBNICAT": "",
	} {
		if got := nearest(name); got != want {
			t.Errorf("nearest(%s) = %q, want %q", name, got, want)
		}
	}
}

func TestRelease(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{
		"v1.2.3": "1.2", "1.2.3": "1.2", "v0.10.0-rc.1": "0.10", "devel": "", "": "", "v1": "", "v1.2.3-4-gabcdef": "1.2",
	} {
		if got := release(version); got != want {
			t.Errorf("release(%q) = %q, want %q", version, got, want)
		}
	}
}

// TestPrinter requires that checks that were not run for the same reason share a line, and that
// none of them is missing.
func TestPrinter(t *testing.T) {
	t.Parallel()
	idle := func(name, why string) Finding { return Finding{Check: name, Status: NotTried, Seen: why} }
	all := []Finding{
		{Check: "a", Status: OK, Seen: "fine"},
		{Check: "b", Status: Failure, Seen: "not\nfine", Next: "mend it"},
		idle("c", "b failed"), idle("d", "b failed"), idle("e", "there is none"),
		{Check: "f", Status: Warning, Seen: "soon", Next: "wait"},
		idle("g", "b failed"), idle("h", "b failed"), idle("i", "b failed"), idle("j", "b failed"), idle("k", "b failed"),
	}
	for _, test := range []struct {
		quiet bool
		want  string
	}{
		{false, `+ ok         a: fine
x failure    b: not fine
             hint: mend it
- not tried  c, d: because b failed
- not tried  e: because there is none
! warning    f: soon
             hint: wait
- not tried  5 checks, from g to k: because b failed
`},
		{true, `x failure    b: not fine
             hint: mend it
! warning    f: soon
             hint: wait
`},
	} {
		p := Printer{Quiet: test.quiet}
		var got strings.Builder
		for _, f := range all {
			for _, line := range p.Add(f) {
				got.WriteString(line.String() + "\n")
			}
		}
		for _, line := range p.End() {
			got.WriteString(line.String() + "\n")
		}
		if got.String() != test.want {
			t.Errorf("quiet %v:\n%s\nwant\n%s", test.quiet, got.String(), test.want)
		}
	}
	r := Report{Findings: all}
	if got := r.Summary(); got != "11 checks: 1 failure, 1 warning, 8 not tried, 1 ok" {
		t.Errorf("the summary is %q", got)
	}
}

// FuzzAnswer sends arbitrary responses in place of a gateway.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte{0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255, 0, 0, 0, 1})
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		here, there := net.Pipe()
		c := &connection{Conn: here}
		defer c.close()
		go func() {
			there.Read(make([]byte, 4096))
			there.Write(answer)
			there.Close()
		}()
		req := kmsg.NewPtrMetadataRequest()
		req.Version = 8
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := c.Request(ctx, req); err == nil && len(answer) < 8 {
			t.Errorf("%q is taken for an answer", answer)
		}
	})
}
