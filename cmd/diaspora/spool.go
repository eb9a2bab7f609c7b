package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/doctor"
	"github.com/diaspora-streams/diaspora/internal/outcome"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/spool/pool"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

var spoolListHelp = help{
	use:   "ls",
	short: "list your spools and their pending events",
	examples: `
diaspora spool ls
diaspora spool ls -o json | jq '.events'`,
	long: `
A spool keeps the events of "diaspora produce" on disk until the cluster has acknowledged them. Each
process that logs has a spool of its own. The next process sends the events that an earlier one has
left. The command lists the spools of all profiles, and of all fabrics that were used with
DIASPORA_URL. With --profile, it lists only the spools of that profile.`,
}

var spoolCatHelp = help{
	use:   "cat [DIRECTORY]",
	short: "print pending events, or events that were set aside",
	examples: `
# print pending events, one value per line
diaspora spool cat

# print all details of each event, as input for produce --input ndjson
diaspora spool cat -o ndjson

# print events that the cluster will never accept, with the reasons
diaspora spool cat --quarantine -o json`,
	long: `
The command changes nothing, and can run while another process logs. Without a DIRECTORY, it prints
the events of all your spools. With --profile, it prints those of that profile.`,
	formats: streamFormats,
	args:    arguments{max: 1},
}

var spoolVerifyHelp = help{
	use:   "verify [DIRECTORY]",
	short: "read all pending events and report damage",
	examples: `
diaspora spool verify
diaspora spool verify /var/lib/beamline/spool -o json`,
	long: `
The command changes nothing, and can run while another process logs. If anything is damaged, the
exit code is 9.`,
	args: arguments{max: 1},
}

var spoolDrainHelp = help{
	use:   "drain",
	short: "send pending events to the cluster",
	examples: `
diaspora spool drain

# from cron or a systemd timer: try for one minute
diaspora spool drain --timeout 1m --quiet`,
	long: `
The command sends the events of all your spools. If a running process uses a spool, that process
sends them, and the command waits for it. For the spools of a profile, it uses the login of the
profile. For the spools of the fabric in DIASPORA_URL, it uses the credential in the environment.
Events that were logged with an access key can also be sent with your login, or with any other of
your keys.

The command ends when the events that were pending at its start are sent, or when there is no
progress for five seconds. The exit code is
  0    these events are sent
  2    there are no spools in the folder, but in its subfolders: set DIASPORA_STATE_DIR to one of those
  3    you are not logged in
  4    you have no permission to write to the topic
  5    the topic does not exist
  75   the cluster is unreachable, another identity logged the events, or the process that uses the
       spool does not send them

The spools are in ~/.local/state/diaspora, or in the folder in DIASPORA_STATE_DIR.`,
	args: arguments{surplus: "to drain another folder, set DIASPORA_STATE_DIR"},
}

var spoolDismissHelp = help{
	use:   "dismiss [DIRECTORY]",
	short: "stop reporting events that were dropped, set aside or damaged",
	examples: `
# see the reports, then dismiss them
diaspora status
diaspora spool cat --quarantine
diaspora spool dismiss`,
	long: `
"diaspora status", "diaspora spool ls" and "diaspora doctor" report these events until you dismiss
them. After that, they report only new losses. The command deletes nothing, and can run while another
process logs. Without a DIRECTORY, it applies to all your spools. With --profile, it applies to those
of that profile.`,
	args: arguments{max: 1},
}

var statusHelp = help{
	use:   "status",
	short: "show in one line how many events are pending, for how long and why",
	examples: `
diaspora status
diaspora status -o json

# in a monitoring script: succeed if no events are pending and none were lost
diaspora status -o json | jq -e '.events == 0 and .dropped + .quarantined + .damaged == 0'`,
	long: `
The command reads only the spools on this machine: those of all profiles or, with --profile, of that
profile. Run it as the same user, and with the same DIASPORA_STATE_DIR, as the program that logs. The
exit code is 0 whether or not events are pending. The command cannot see whether "produce --watch" is
still running; use a process monitor for that.

With -o json, it prints an object with
  spools                   number of spools in DIASPORA_STATE_DIR
  events                   number of pending events
  bytes                    size of the spools' files, which shrink some time after events were sent
  oldest                   when the oldest pending event was logged; omitted if no event is pending
  why                      why events are pending; omitted if none is pending or all are being sent.
                           Of several reasons, that of a running process, otherwise the latest
  why_time                 when a process noted that reason
  full                     why a spool accepts no more events; omitted if all spools accept events
  discarded                events that "diaspora spool discard" removed from these spools; when an
                           empty spool is removed, its count is lost
and these counts of events that will not arrive, which "diaspora spool dismiss" resets to 0:
  dropped                  because the spool was full, by Go programs that choose this
  quarantined              set aside, because the cluster does not accept them
  damaged                  damaged on disk`,
}

func (e *env) spoolCommands() []*cobra.Command {
	var quarantine bool
	var timeout time.Duration
	list := e.command(spoolListHelp, func(context.Context, []string) error { return e.spoolList() })
	list.Aliases = []string{"list"}
	cat := e.command(spoolCatHelp, func(_ context.Context, args []string) error { return e.spoolCat(args, quarantine) })
	cat.Flags().BoolVar(&quarantine, "quarantine", false, "print the events that were set aside, with the reasons")
	verify := e.command(spoolVerifyHelp, func(_ context.Context, args []string) error { return e.spoolVerify(args) })
	drain := e.command(spoolDrainHelp, func(ctx context.Context, _ []string) error { return e.spoolDrain(ctx, timeout) })
	drain.Flags().DurationVar(&timeout, "timeout", 0, "time limit, as a `DURATION` such as 1m (default: as long as there is progress)")
	var to string
	var yes bool
	discard := e.command(spoolDiscardHelp, func(ctx context.Context, args []string) error { return e.spoolDiscard(ctx, args, to, yes) })
	discard.Flags().StringVar(&to, "to", "", "write the events to `FILE` before they are removed")
	discard.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation")
	dismiss := e.command(spoolDismissHelp, func(_ context.Context, args []string) error { return e.spoolDismiss(args) })
	return []*cobra.Command{list, cat, verify, drain, discard, dismiss}
}

func (e *env) statusCommand() *cobra.Command {
	return e.command(statusHelp, func(context.Context, []string) error { return e.status() })
}

// spoolsAt returns the directory that is named, or those of all of the user's spools.
func (e *env) spoolsAt(args []string) (dirs []string, err error) {
	if len(args) > 0 {
		return args, nil
	}
	_, spools, err := e.spools()
	for _, s := range spools {
		dirs = append(dirs, s.Dir)
	}
	return dirs, err
}

// spoolsFor is spoolsAt for a command that does something with each of them. It says where there is none.
func (e *env) spoolsFor(args []string) (dirs []string, err error) {
	if dirs, err = e.spoolsAt(args); err == nil && len(dirs) == 0 {
		var text string
		text, _, err = e.noSpool()
		e.say("%s", text)
	}
	return dirs, err
}

// spoolDocument describes a spool.
type spoolDocument struct {
	Dir       string    `json:"dir"`
	Profile   string    `json:"profile,omitempty"`
	URL       string    `json:"url,omitempty"` // of the fabric, if there is no profile and it is known
	Events    uint64    `json:"events"`
	Bytes     int64     `json:"bytes"`
	Oldest    time.Time `json:"oldest,omitzero"`
	Why       string    `json:"why,omitempty"`     // why events are pending
	WhyTime   time.Time `json:"why_time,omitzero"` // when the process that gave the reason gave it
	Full      string    `json:"full,omitempty"`    // why the spool accepts no more events
	Subject   string    `json:"subject"`
	Owner     string    `json:"owner,omitempty"` // the process that uses the spool
	Discarded uint64    `json:"discarded"`       // by spool discard, since the spool was created

	spool.Losses // that were not dismissed
}

func document(dir string, info spool.Info) spoolDocument {
	d := spoolDocument{
		Dir: dir, Events: info.Events, Bytes: info.Bytes, Oldest: info.Oldest.UTC(), Subject: info.Subject,
		Discarded: info.Discarded, Losses: info.Losses(),
	}
	if info.Used() {
		d.Owner = info.Owner.String()
		d.Full = info.Owner.Full
	}
	d.Why, d.WhyTime = info.Reason()
	d.WhyTime = d.WhyTime.UTC().Truncate(time.Millisecond)
	switch {
	case info.Events == 0 || d.Owner != "":
	case d.Why != "": // it may be over
		d.Why += " (" + lastNoted + "); " + notSent
	default:
		d.Why = notSent
	}
	return d
}

const (
	lastNoted = "noted by the last process"
	notSent   = "no process sends them"
)

// reason returns why events are pending, and how long ago that was said.
func (e *env) reason(why string, said time.Time) string {
	if why == "" || said.IsZero() {
		return why
	}
	if cause, ok := strings.CutSuffix(why, " ("+lastNoted+"); "+notSent); ok {
		return fmt.Sprintf("%s (%s, %s ago); %s", cause, lastNoted, e.age(said), notSent)
	}
	return fmt.Sprintf("%s (noted %s ago)", why, e.age(said))
}

// spoolDocuments describes the spools. latest is the one whose reason for pending events says most about the present.
func (e *env) spoolDocuments() (docs []spoolDocument, latest spoolDocument, err error) {
	_, spools, err := e.spools()
	if err != nil {
		return nil, latest, err
	}
	var of *spool.Info // latest
	for i, s := range spools {
		if s.Err != nil {
			return nil, latest, spoolFailure(s.Err)
		}
		d := document(s.Dir, s.Info)
		d.Profile, d.URL = s.Pool.Profile, s.Pool.URL
		docs = append(docs, d)
		if d.Why != "" && (of == nil || s.Info.MoreRecent(of)) {
			of, latest = &spools[i].Info, d
		}
	}
	return docs, latest, nil
}

// spoolFailure gives an error of a spool its exit code, whatever its cause.
func spoolFailure(err error) error {
	return &failure{errors.New(err.Error()), diaspora.ErrSpoolFailed, hintsOf(err)}
}

func (e *env) spoolList() error {
	docs, _, err := e.spoolDocuments()
	if err != nil {
		return err
	}
	if len(docs) == 0 && !e.json() {
		text, _, err := e.noSpool()
		e.say("%s", text)
		return err
	}
	rows := [][]string{{"EVENTS", "SIZE", "OLDEST", "ASIDE", "USED BY", "OF", "DIRECTORY", "WHY"}}
	for _, d := range docs {
		if e.json() {
			if err := e.printJSON(d); err != nil {
				return err
			}
			continue
		}
		if d.Why = e.reason(d.Why, d.WhyTime); d.Full != "" {
			d.Why = strings.TrimSuffix("full: "+d.Full+"; "+d.Why, "; ")
		}
		rows = append(rows, []string{fmt.Sprint(d.Events), terminal.Size(d.Bytes), e.age(d.Oldest), fmt.Sprint(d.Quarantined),
			cmp.Or(d.Owner, "-"), cmp.Or(poolName(pool.Pool{Profile: d.Profile, URL: d.URL}), "-"), d.Dir, cmp.Or(d.Why, "-")})
	}
	if e.json() {
		return nil
	}
	return e.printTable(rows)
}

// statusDocument sums up the spools.
type statusDocument struct {
	Spools    int       `json:"spools"`
	Events    uint64    `json:"events"`
	Bytes     int64     `json:"bytes"`
	Oldest    time.Time `json:"oldest,omitzero"`
	Why       string    `json:"why,omitempty"`
	WhyTime   time.Time `json:"why_time,omitzero"`
	Full      string    `json:"full,omitempty"`
	Discarded uint64    `json:"discarded"`
	spool.Losses

	running bool   // the process that gave the reason in Why still runs
	dir     string // the spool with that reason

	reasons map[string]uint64 // how many events are pending for which reason; "" means that they are being sent
}

func (e *env) status() error {
	docs, latest, err := e.spoolDocuments()
	if err != nil {
		return err
	}
	total := statusDocument{Spools: len(docs), Why: latest.Why, WhyTime: latest.WhyTime, running: latest.Owner != "", dir: latest.Dir, reasons: map[string]uint64{}}
	for _, d := range docs {
		total.Events += d.Events
		total.Bytes += d.Bytes
		total.Discarded += d.Discarded
		total.Losses = sum(total.Losses, d.Losses)
		total.Full = cmp.Or(total.Full, d.Full)
		if d.Events == 0 {
			continue
		}
		if total.Oldest.IsZero() || !d.Oldest.IsZero() && d.Oldest.Before(total.Oldest) {
			total.Oldest = d.Oldest
		}
		total.reasons[e.reason(d.Why, d.WhyTime)] += d.Events
	}
	if e.json() {
		return e.printJSON(total)
	}
	c, head, rest := e.statusLine(total)
	if len(docs) == 0 {
		text, elsewhere, err := e.noSpool()
		if err != nil {
			return err
		}
		if rest = ": " + oneLine(text); elsewhere {
			c, head, rest = yellow, "no spool", strings.TrimPrefix(oneLine(text), "there is no spool")
		}
	} else if other := e.otherSpools(); other != "" {
		c, rest = yellow, rest+"; "+oneLine(other)
	}
	err = e.printPainted(c, head, rest+"\n")
	if total.running && strings.Contains(total.Why, diaspora.ErrUnauthenticated.Error()) && strings.Contains(total.Why, "access key") && !strings.Contains(total.Why, accesskey.FaultMark) {
		e.hint("replace the key file; the process that logs reads it again within a minute")
	}
	if topic := doctor.TopicOf(total.Why); topic != "" {
		e.hint(e.discardHint(topic, total.dir, total.running))
	} else if strings.HasSuffix(total.Why, notSent) && !strings.Contains(total.Why, diaspora.ErrPermission.Error()) {
		e.hintDrain(latest)
	}
	return err
}

// hintDrain says how to send the events of a spool that no process sends, if the login or key in use may do so.
func (e *env) hintDrain(d spoolDocument) {
	cfg, err := e.config()
	known := cfg.Identity.Subject != "" && d.Subject != "" && !spool.IsUnbound(d.Subject)
	switch drain := e.spoolCommand("drain"); {
	case err != nil:
	case known && cfg.Identity.Subject != d.Subject:
		e.hint("another identity logged them, and only that identity can send them")
	case strings.Contains(d.Why, diaspora.ErrUnauthenticated.Error()):
		e.hint(fmt.Sprintf(`then send them: "%s"`, drain))
	default:
		e.hint(fmt.Sprintf(`to send them now: "%s"`, drain))
	}
}

// noSpool says in which folder there is no spool. elsewhere means that folders in it have spools.
func (e *env) noSpool() (text string, elsewhere bool, err error) {
	dir, below, err := e.spoolsBelow("some")
	return "there is no spool in " + dir + below, below != "", err
}

// spoolsBelow returns the folder of the spools, and which folders in it have spools too, or "": people give each rank
// of a job a state folder of its own, and then look into the folder above them. some is the word for spools.
func (e *env) spoolsBelow(some string) (dir, text string, err error) {
	dir, err = e.stateDir()
	if e.profile != "" {
		var p pool.Pool
		p, err = e.currentPool()
		dir = p.Dir
	}
	if err != nil {
		return "", "", err
	}
	entries, _ := os.ReadDir(dir) // an unreadable folder is like an empty one here
	n, example := 0, ""
	for _, entry := range entries {
		if pools, err := pool.List(filepath.Join(dir, entry.Name()), nil); err == nil && len(pools) > 0 {
			n, example = n+1, cmp.Or(example, entry.Name())
		}
	}
	switch {
	case n == 1:
		text = fmt.Sprintf("; the folder %s in it has %s: set DIASPORA_STATE_DIR to that", example, some)
	case n > 1:
		text = fmt.Sprintf("; %d folders in it have %s, such as %s: set DIASPORA_STATE_DIR to each of them", n, some, example)
	}
	return dir, text, nil
}

// otherSpools says which folders in the one of these spools have spools too, or returns "".
func (e *env) otherSpools() string {
	dir, below, _ := e.spoolsBelow("other spools")
	return strings.Replace(strings.TrimPrefix(below, "; "), " in it ", " in "+dir+" ", 1)
}

// statusLine describes the spools. The colour and the head say whether everything is well.
func (e *env) statusLine(d statusDocument) (c colour, head, text string) {
	c, head = green, "no events are pending"
	if d.Events > 0 {
		c, head = yellow, fmt.Sprintf("%s pending (%s on disk)", count(d.Events, "event"), terminal.Size(d.Bytes))
		text = fmt.Sprintf(", the oldest for %s: %s", e.age(d.Oldest), e.reasonsText(d))
	}
	if d.Losses != (spool.Losses{}) {
		c = yellow
	}
	if d.Full != "" {
		c = red
		text += "; the spool is full, and accepts no more: " + oneLine(d.Full)
	}
	if d.Losses != (spool.Losses{}) {
		text += "; " + lossesText(d.Losses) + ` ("diaspora spool dismiss" ends this report)`
	}
	return c, head, text
}

// reasonsText says why events are pending. If the spools have different reasons, it says of how many events each is, the
// latest first.
func (e *env) reasonsText(d statusDocument) string {
	all := d.reasons
	latest := e.reason(d.Why, d.WhyTime)
	if len(all) < 2 {
		return oneLine(cmp.Or(latest, "they are being sent"))
	}
	var parts []string
	said := map[string]bool{}
	for _, why := range slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		switch {
		case a == latest:
			return -1
		case b == latest:
			return 1
		}
		return cmp.Or(cmp.Compare(all[b], all[a]), cmp.Compare(a, b))
	}) {
		text := oneLine(cmp.Or(why, "being sent"))
		cause, when, _ := strings.Cut(text, " (noted ")
		if when != "" && said[cause] {
			text = "the same reason (noted " + when
		}
		said[cause] = true
		parts = append(parts, fmt.Sprintf("%d of them: %s", all[why], text))
	}
	const most = 3
	if rest := len(parts) - most; rest > 0 {
		parts = append(parts[:most], fmt.Sprintf("and %s more (see \"diaspora spool ls\")", count(rest, "reason")))
	}
	return strings.Join(parts, "; ")
}

func sum(a, b spool.Losses) spool.Losses {
	return spool.Losses{Dropped: a.Dropped + b.Dropped, Quarantined: a.Quarantined + b.Quarantined, Damaged: a.Damaged + b.Damaged}
}

// lossesText returns the numbers of lost events: "3 dropped, 1 set aside".
func lossesText(l spool.Losses) string {
	var parts []string
	for _, part := range []struct {
		n    uint64
		what string
	}{{l.Quarantined, "set aside"}, {l.Dropped, "dropped"}, {l.Damaged, "damaged"}} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.n, part.what))
		}
	}
	return strings.Join(parts, ", ")
}

// spoolDismiss ends the report of losses.
func (e *env) spoolDismiss(args []string) error {
	dirs, err := e.spoolsFor(args)
	if err != nil {
		return err
	}
	var total spool.Losses
	for _, dir := range dirs {
		l, err := spool.Dismiss(dir)
		if err != nil {
			return spoolFailure(err)
		}
		total = sum(total, l)
	}
	text := "dismissed: " + lossesText(total)
	if total == (spool.Losses{}) {
		text = "nothing to dismiss: no event was dropped, set aside or damaged"
	}
	return e.answer(total, "%s\n", text)
}

func (e *env) spoolCat(args []string, quarantine bool) error {
	dirs, err := e.spoolsFor(args)
	if err != nil {
		return err
	}
	cat := e.catPending
	if quarantine {
		cat = e.catQuarantine
	}
	for _, dir := range dirs {
		if err := cat(dir); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) catPending(dir string) error {
	out := newLineWriter(e.stdout)
	person := e.terminal(e.stdout)
	var line []byte
	for r, err := range spool.Entries(dir) {
		if err != nil {
			return errors.Join(out.flush(), spoolFailure(err))
		}
		switch {
		case e.json():
			line = appendEntry(line[:0], &r.Entry)
		case person:
			line = append(terminal.Escape(line[:0], r.Value), '\n')
		default:
			line = append(append(line[:0], r.Value...), '\n')
		}
		if err := out.write(line); err != nil {
			return err
		}
	}
	return out.flush()
}

// appendEntry appends a pending event as a line like those of consume, but without a partition and an offset, which
// it does not have yet.
func appendEntry(buf []byte, entry *spool.Entry) []byte {
	r := diaspora.Record{Event: diaspora.Event{Topic: entry.Topic, Key: entry.Key, Value: entry.Value, Time: entry.Time, ID: entry.ID}}
	for _, h := range entry.Headers {
		r.Headers = append(r.Headers, diaspora.Header(h))
	}
	line := appendRecord(buf, &r)
	return append(buf, bytes.Replace(line[len(buf):], []byte(`,"partition":0,"offset":0`), nil, 1)...)
}

func (e *env) catQuarantine(dir string) error {
	for p, err := range spool.Quarantined(dir) {
		if err != nil {
			e.warn("%v", err)
			continue
		}
		var what string
		if p.Entry != nil {
			what = p.Entry.Topic + " " + oneLine(p.Entry.ID)
		} else {
			what = fmt.Sprintf("%s at %d: %s %s lost", p.Damage.Segment, p.Damage.Offset, count(p.Damage.Events, "event"), agree(p.Damage.Events, "is", "are"))
		}
		if err := e.answer(p, "%s %s: %s\n", e.clock(p.Time), what, oneLine(p.Reason)); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) spoolVerify(args []string) error {
	dirs, err := e.spoolsFor(args)
	if err != nil {
		return err
	}
	problems := 0
	for _, dir := range dirs {
		report, err := spool.Verify(dir)
		if err != nil {
			return spoolFailure(err)
		}
		problems += len(report.Problems)
		text := fmt.Sprintf("%s: %s good", oneLine(dir), count(report.Read, "event"))
		for _, problem := range report.Problems {
			text += "\n  " + oneLine(problem)
		}
		if err := e.answer(struct {
			spoolDocument
			Good     uint64   `json:"good"`
			Torn     int64    `json:"torn"`
			Problems []string `json:"problems"`
		}{document(dir, report.Info), report.Read, report.Torn, append([]string{}, report.Problems...)}, "%s\n", text); err != nil {
			return err
		}
	}
	if problems > 0 {
		return fail(diaspora.ErrSpoolFailed, "", "spool verify: %s", count(problems, "problem"))
	}
	return nil
}

// drain is one run of spool drain.
type drain struct {
	env *env
	own pool.Pool // the spools of the login that is in use

	sent, left int64  // events that were acknowledged, or are still pending
	others     int64  // events that running processes have sent, while drain waited for them
	inUse      int64  // events that running processes have not sent
	gaveUp     bool   // a running process made no progress, so drain waits for no other one
	user       string // the running process, or the last of them
	userWhy    string // why it has not sent them, if it says so
	why        error  // why events are still pending
	loggedOut  bool   // nobody is logged in to the fabric of some events

	unreachable map[string]bool // fabrics, by the paths of their outage records
	progress    drainProgress
}

// spoolDrain sends the pending events of all of the user's spools.
func (e *env) spoolDrain(ctx context.Context, timeout time.Duration) error {
	own, spools, err := e.spools()
	if err != nil {
		return err
	}
	d := &drain{env: e, own: own, unreachable: map[string]bool{}}
	var pending []pool.Spool
	for _, s := range spools {
		if s.Err != nil {
			return spoolFailure(s.Err)
		}
		if s.Events > 0 {
			pending = append(pending, s)
			d.progress.all += int64(s.Events)
		}
	}
	if len(pending) == 0 {
		if _, err := e.config(); err != nil {
			return err
		}
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	defer e.tidySpools(ctx)
	d.progress.spools = len(pending)
	hide := e.progress(false, d.progress.line())
	defer hide()
	var used []pool.Spool // by other processes
	for _, s := range pending {
		err := d.trySend(ctx, s)
		if errors.Is(err, diaspora.ErrConflict) {
			used = append(used, s)
		} else if err != nil {
			return err
		}
	}
	for _, s := range used {
		if err := d.send(ctx, s); err != nil {
			return err
		}
	}
	hide()
	if other := e.otherSpools(); other != "" && len(spools) > 0 {
		e.warn("%s", other)
	}
	switch {
	case e.json():
		err = e.printJSON(struct {
			Acknowledged int64 `json:"acknowledged"`
			Waiting      int64 `json:"waiting"`
			InUse        int64 `json:"in_use"` // of running processes
		}{d.sent, d.left, d.inUse})
	case len(spools) == 0:
		text, elsewhere, err := e.noSpool()
		if err != nil {
			return err
		}
		if elsewhere { // the user most likely means those, and nothing was sent
			return misuse("", "%s", text)
		}
		e.say("%s", text)
	case len(pending) == 0:
		place := e.spoolPlace()
		if e.profile != "" {
			place = own.Dir
		}
		e.say("no events are pending in %s", place)
	default:
		text := fmt.Sprintf("%s acknowledged, %d waiting", count(d.sent, "event"), d.left+d.inUse)
		if d.others > 0 {
			text += fmt.Sprintf("; %s sent by the process that logged %s", count(d.others, "event"), agree(d.others, "it", "them"))
		}
		if d.inUse > 0 {
			text += fmt.Sprintf("; %d of them %s for %s, which uses the spool", d.inUse, agree(d.inUse, "is", "are"), d.user)
		}
		if dir, err := e.stateDir(); err == nil && e.getenv("DIASPORA_STATE_DIR") != "" {
			text += ", in " + dir // in a loop over many folders, this tells them apart
		}
		e.say("%s", text)
	}
	if err == nil && d.why == nil && d.loggedOut {
		d.why = fail(diaspora.ErrUnauthenticated, "", "spool drain: nobody is logged in to the fabric of some of these events")
	}
	if err == nil && d.left == 0 && d.inUse > 0 {
		why, hint := "", ""
		if d.userWhy != "" {
			why = ": " + d.userWhy
		}
		if strings.Contains(d.userWhy, diaspora.ErrUnauthenticated.Error()) {
			hint = "replace its key file: it reads the file again within a minute, and then sends them"
		}
		return fail(outcome.ErrSpooled, hint, "%s in the spool that %s uses%s", waiting(d.inUse), d.user, why)
	}
	return cmp.Or(err, pendingError(d.left, d.why))
}

// send sends the events of one spool, or waits until the process that uses it has done so. Its error ends the command: no
// other spool is sent.
func (d *drain) send(ctx context.Context, s pool.Spool) error {
	const maxTries = 50 // an owner file may be damaged, and so name nobody
	for tries := 1; ; tries++ {
		err := d.trySend(ctx, s)
		if !errors.Is(err, diaspora.ErrConflict) {
			return err
		}
		d.gaveUp = d.gaveUp || tries == maxTries
		if done := d.await(ctx, s); done {
			return nil
		}
	}
}

// await waits until the process that uses a spool has sent the events that were pending at the start, or until there is no
// progress. done is false if the process has ended.
func (d *drain) await(ctx context.Context, s pool.Spool) (done bool) {
	for first, progress := s.First, time.Now(); ; {
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
		now, err := spool.Inspect(s.Dir)
		switch {
		case err != nil: // it was removed or replaced, or to open it fails as well
			return d.gaveUp
		case now.First >= s.Next || now.Events == 0:
			d.others += int64(s.Events)
			return true
		case now.First > first:
			first, progress = now.First, time.Now()
		}
		if d.gaveUp || time.Since(progress) > drainPatience || ctx.Err() != nil {
			d.gaveUp = true
			d.inUse += int64(min(now.Events, s.Next-now.First))
			d.user, d.userWhy = "another process", ""
			if now.Used() {
				d.user = now.Owner.String()
				d.userWhy, _ = now.Reason()
			}
			return true
		}
		if !now.Used() {
			return false
		}
	}
}

// drainPatience is how long drain waits for a process that makes no progress. It is as long as a Logger waits at its end.
const drainPatience = 5 * time.Second

// trySend sends the events of one spool. The error is [diaspora.ErrConflict] if another process uses it.
func (d *drain) trySend(ctx context.Context, s pool.Spool) error {
	e, events := d.env, int64(s.Events)
	cfg, err := e.configFor(s.Pool, d.own)
	if err != nil && s.Pool != d.own {
		text, hints := explanation(err)
		e.warn("%s of %s in %s: %s", count(events, "event"), cmp.Or(poolName(s.Pool), "-"), s.Dir, text)
		e.hint(hints...)
		d.left += events
		d.loggedOut = d.loggedOut || outcome.ExitCode(err) == outcome.ExitCode(diaspora.ErrUnauthenticated)
		return nil
	}
	if err != nil {
		return err
	}
	outages := e.outages(cfg)
	if d.unreachable[outages.path] { // do not wait again for each spool of a job of fifty processes
		d.left += events
		return nil
	}
	cfg.SpoolDir = s.Dir
	logger, err := diaspora.OpenLogger(ctx, cfg)
	switch {
	case errors.Is(err, spool.ErrSubject):
		if loginRejected(err) {
			d.why = err // which is printed at the end
		} else {
			e.warn("%v", err)
		}
		d.left += events
		return nil
	case err != nil:
		return err
	}
	d.progress.begin(logger)
	if err := logger.Close(ctx); err != nil {
		return err
	}
	stats := logger.Stats()
	d.progress.end(stats.Acknowledged)
	d.sent += stats.Acknowledged
	d.left += stats.Spool.Events
	switch {
	case stats.Acknowledged > 0:
		outages.forget()
	case ctx.Err() == nil && stats.Spool.Events > 0 && errors.Is(stats.Spool.Why, diaspora.ErrUnavailable):
		d.unreachable[outages.path] = true
		outages.remember()
	}
	if stats.Spool.Why != nil {
		d.why = stats.Spool.Why
		if t := (*diaspora.TopicError)(nil); errors.As(d.why, &t) && permanent(d.why) && !errors.Is(d.why, diaspora.ErrUnauthenticated) {
			d.why = hinted(d.why, e.discardHint(t.Topic, s.Dir, false))
		}
		d.why = e.aboutTopic(ctx, cfg, d.why)
	}
	return nil
}

// pendingError returns the error of a command that leaves events in the spool: why, if only a person can solve the
// problem, and otherwise [outcome.ErrSpooled].
func pendingError(left int64, why error) error {
	switch {
	case left == 0:
		return nil
	case permanent(why):
		return why
	case why != nil:
		hint := ""
		if errors.Is(why, diaspora.ErrUnavailable) {
			hint = `"diaspora doctor" finds out why the fabric cannot be reached`
		}
		return fail(outcome.ErrSpooled, hint, "%s in the spool: %v", waiting(left), why)
	}
	return fail(outcome.ErrSpooled, "", "%s in the spool", waiting(left))
}

// permanent reports whether err lasts until somebody does something about it.
func permanent(err error) bool {
	return errors.Is(err, diaspora.ErrUnauthenticated) || errors.Is(err, diaspora.ErrPermission) ||
		errors.Is(err, diaspora.ErrNotFound) || errors.Is(err, diaspora.ErrInvalid)
}
