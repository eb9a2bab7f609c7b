package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
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
A spool keeps what "diaspora produce" has logged until the cluster has acknowledged it. Each process
that logs has a spool of its own; the events that it leaves there are sent by the next process. The
command lists the spools of all profiles, and those of fabrics that DIASPORA_URL names. With
--profile, it lists only the spools of that profile.`,
	formats: answerFormats,
}

var spoolCatHelp = help{
	use:   "cat [DIRECTORY]",
	short: "print pending events, or events that were set aside",
	examples: `
# pending events, one value per line
diaspora spool cat

# with all details of each event, as input for produce --input ndjson
diaspora spool cat -o ndjson

# events that the cluster will never accept, with the reasons
diaspora spool cat --quarantine -o json`,
	long: `
The command only reads, and can run while another process logs. Without a DIRECTORY, it prints the
events of all your spools, or with --profile, of that profile's spools.`,
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
	formats: answerFormats,
	args:    arguments{max: 1},
}

var spoolDrainHelp = help{
	use:   "drain",
	short: "send pending events to the cluster",
	examples: `
diaspora spool drain

# from cron or a systemd timer: try for one minute
diaspora spool drain --timeout 1m --quiet`,
	long: `
The command sends the events of all your spools that no other process is sending. For the spools of
a profile, it uses the login that is stored there. For those of a fabric that DIASPORA_URL names, it
uses the credential that is set in the environment. Events that were logged with an access key can
also be sent with your login, or with any other key of yours. Events of a running process are left
to that process.

The command ends when no events are pending, or when they cannot be sent now. The exit code is 0 if
no events are pending, apart from those of running processes. Otherwise it shows the reason: 3 if
you are not logged in, 4 if you have no permission, 5 if there is no such topic, 75 if the cluster
is unreachable, or if the events belong to somebody else. It is 2 if the folder has no spool, but
folders in it have some.

The spools are in ~/.local/state/diaspora, or in the folder that DIASPORA_STATE_DIR names.`,
	formats: answerFormats,
	args:    arguments{surplus: "to drain another folder, set DIASPORA_STATE_DIR"},
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
"diaspora status", "diaspora spool ls" and "diaspora doctor" report these events until somebody
dismisses them. Later losses are reported again. Nothing is deleted. The command can run while
another process logs. Without a DIRECTORY, it applies to all your spools, or with --profile, to
those of that profile.`,
	formats: answerFormats,
	args:    arguments{max: 1},
}

var statusHelp = help{
	use:   "status",
	short: "show in one line how many events are pending, for how long and why",
	examples: `
diaspora status
diaspora status -o json

# for a monitor: succeed if no events are pending and none were lost
diaspora status -o json | jq -e '.events == 0 and .dropped + .quarantined + .damaged == 0'`,
	long: `
The command reads only your spools: those of all profiles, or with --profile, those of that profile.
Run it as the same user, and with the same DIASPORA_STATE_DIR, as the program that logs. The exit
code is 0 whether or not events are pending. The command sees only what is in a spool. It cannot see
whether a "produce --watch" is still running; use a process monitor for that.

With -o json, it prints an object with
  spools                   number of spools; those in other folders are not counted
  events, bytes            number of pending events, and size of the spools' files, which shrink
                           some time after their events were sent
  oldest                   when the oldest pending event was logged; omitted if none is pending
  why                      why events are pending; omitted if none is, or if they are being sent
  full                     why a spool accepts no more events; omitted if all spools accept events
  discarded                events that "diaspora spool discard" removed from these spools; an empty
                           spool is removed, together with its count
  dropped, quarantined, damaged
                           events that were dropped for lack of space, set aside because the cluster
                           does not accept them, or damaged on disk, until "diaspora spool dismiss"`,
	formats: answerFormats,
}

func (e *env) spoolCommands() []*cobra.Command {
	var quarantine bool
	var timeout time.Duration
	list := e.command(spoolListHelp, func(context.Context, []string) error { return e.spoolList() })
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

// spoolsAt returns the directory that is named, or all of this user's.
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

// spoolDocument says what a spool has, as JSON.
type spoolDocument struct {
	Dir       string     `json:"dir"`
	Profile   string     `json:"profile,omitempty"`
	URL       string     `json:"url,omitempty"` // of the fabric, if there is no profile and it is known
	Events    uint64     `json:"events"`
	Bytes     int64      `json:"bytes"`
	Oldest    *time.Time `json:"oldest,omitempty"`
	Why       string     `json:"why,omitempty"`
	Full      string     `json:"full,omitempty"` // why it takes no more events
	Subject   string     `json:"subject"`
	Owner     string     `json:"owner,omitempty"` // the process that has it
	Discarded uint64     `json:"discarded"`       // by spool discard, in the spool's whole life

	spool.Losses // that were not dismissed
}

func document(dir string, info spool.Info) spoolDocument {
	d := spoolDocument{
		Dir: dir, Events: info.Events, Bytes: info.Bytes, Subject: info.Subject,
		Discarded: info.Discarded, Losses: info.Losses(),
	}
	if !info.Oldest.IsZero() {
		oldest := info.Oldest.UTC()
		d.Oldest = &oldest
	}
	if info.Owner != nil && !info.Owner.Gone() {
		d.Owner = info.Owner.String()
		d.Full = info.Owner.Full
	}
	switch {
	case info.Events == 0:
	case d.Owner == "" && info.Note != "": // it is as old as that process
		d.Why = "no process sends them; the last one said: " + info.Note
	case d.Owner == "":
		d.Why = "no process sends them"
	default:
		d.Why = info.Note
	}
	return d
}

func (e *env) spoolDocuments() ([]spoolDocument, error) {
	_, spools, err := e.spools()
	if err != nil {
		return nil, err
	}
	docs := []spoolDocument{}
	for _, s := range spools {
		if s.Err != nil {
			return nil, spoolFailure(s.Err)
		}
		d := document(s.Dir, s.Info)
		d.Profile, d.URL = s.Pool.Profile, s.Pool.URL
		docs = append(docs, d)
	}
	return docs, nil
}

// spoolFailure gives an error of a spool its exit code.
func spoolFailure(err error) error {
	return &failure{condition: diaspora.ErrSpoolFailed, text: err.Error()}
}

func (e *env) spoolList() error {
	docs, err := e.spoolDocuments()
	if err != nil {
		return err
	}
	if e.json() {
		for _, d := range docs {
			if err := e.printJSON(d); err != nil {
				return err
			}
		}
		return nil
	}
	if len(docs) == 0 {
		dir, err := e.lookedIn()
		if err != nil {
			return err
		}
		e.say("there is no spool in %s%s", dir, spoolsBelow(dir))
		return nil
	}
	rows := [][]string{{"EVENTS", "SIZE", "OLDEST", "ASIDE", "USED BY", "OF", "DIRECTORY", "WHY"}}
	for _, d := range docs {
		if d.Full != "" {
			d.Why = strings.TrimSuffix("full: "+d.Full+"; "+d.Why, "; ")
		}
		of := poolName(pool.Pool{Profile: d.Profile, URL: d.URL})
		rows = append(rows, []string{fmt.Sprint(d.Events), terminal.Size(d.Bytes), e.age(d.Oldest), fmt.Sprint(d.Quarantined),
			orDash(d.Owner), orDash(of), d.Dir, orDash(d.Why)})
	}
	return e.printTable(rows)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age returns how long ago something was, roughly.
func (e *env) age(t *time.Time) string {
	if t == nil {
		return "-"
	}
	d := max(0, e.now().Sub(*t))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func (e *env) status() error {
	docs, err := e.spoolDocuments()
	if err != nil {
		return err
	}
	total := spoolDocument{}
	for _, d := range docs {
		total.Events += d.Events
		total.Bytes += d.Bytes
		total.Discarded += d.Discarded
		total.Dropped += d.Dropped
		total.Quarantined += d.Quarantined
		total.Damaged += d.Damaged
		if total.Full == "" {
			total.Full = d.Full
		}
		if d.Events == 0 {
			continue
		}
		if d.Oldest != nil && (total.Oldest == nil || d.Oldest.Before(*total.Oldest)) {
			total.Oldest = d.Oldest
		}
		if total.Why == "" || d.Owner != "" && d.Why != "" {
			total.Why = d.Why
		}
	}
	if e.json() {
		return e.printJSON(struct {
			Spools    int        `json:"spools"`
			Events    uint64     `json:"events"`
			Bytes     int64      `json:"bytes"`
			Oldest    *time.Time `json:"oldest,omitempty"`
			Why       string     `json:"why,omitempty"`
			Full      string     `json:"full,omitempty"`
			Discarded uint64     `json:"discarded"`
			spool.Losses
		}{len(docs), total.Events, total.Bytes, total.Oldest, total.Why, total.Full, total.Discarded, total.Losses})
	}
	if len(docs) > 0 {
		c, head, rest := e.statusLine(total)
		return e.printPainted(c, head, rest+"\n")
	}
	dir, err := e.lookedIn()
	if err != nil {
		return err
	}
	if e.profile == "" {
		_, err = os.Stat(filepath.Join(dir, "spool"))
	} else {
		_, err = os.Stat(dir)
	}
	if below := spoolsBelow(dir); below != "" {
		return e.printPainted(yellow, "no spool", fmt.Sprintf(" in %s%s\n", oneLine(dir), oneLine(below)))
	}
	if errors.Is(err, fs.ErrNotExist) { // there never was one
		return e.printPainted(green, "no event waits", fmt.Sprintf(": there is no spool in %s\n", oneLine(dir)))
	}
	return e.printPainted(green, "no event waits", fmt.Sprintf(" in %s\n", oneLine(dir)))
}

// spoolsBelow says how many folders in dir are state folders with spools, or "". People give each rank of a job a
// state folder of its own, and then look into the folder above them.
func spoolsBelow(dir string) string {
	entries, _ := os.ReadDir(dir) // if it cannot be read, there is nothing to say
	n, example := 0, ""
	for _, entry := range entries {
		if pools, err := pool.List(filepath.Join(dir, entry.Name()), nil); err == nil && len(pools) > 0 {
			if n++; n == 1 {
				example = entry.Name()
			}
		}
	}
	if n == 0 {
		return ""
	}
	if n == 1 {
		return fmt.Sprintf("; the folder %s in it has some: set DIASPORA_STATE_DIR to that", example)
	}
	return fmt.Sprintf("; %d folders in it have some, such as %s: set DIASPORA_STATE_DIR to each of them", n, example)
}

// lookedIn returns the folder in which spools are looked for.
func (e *env) lookedIn() (string, error) {
	if e.profile != "" {
		p, err := e.pool()
		return p.Dir, err
	}
	return e.stateDir()
}

// statusLine says how the spools are. Its head says whether that is well.
func (e *env) statusLine(d spoolDocument) (c colour, head, text string) {
	c, head = green, "no event waits"
	if d.Events > 0 {
		why := d.Why
		if why == "" {
			why = "they are on their way"
		}
		c, head = yellow, fmt.Sprintf("%s (%s on disk) %s", count(int64(d.Events), "event"), terminal.Size(d.Bytes), waits(d.Events))
		text = fmt.Sprintf(" since %s: %s", e.age(d.Oldest), oneLine(why))
	}
	if d.Losses != (spool.Losses{}) {
		c = yellow
	}
	if d.Full != "" {
		c = red
	}
	if d.Full != "" {
		text += "; the spool is full, and takes no more: " + oneLine(d.Full)
	}
	if d.Losses != (spool.Losses{}) {
		text += "; " + lossesText(d.Losses) + ` ("diaspora spool dismiss" ends this report)`
	}
	return c, head, text
}

// lossesText says what did not get through: "3 dropped, 1 set aside".
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

// spoolDismiss ends the report of losses that a person has seen.
func (e *env) spoolDismiss(args []string) error {
	dirs, err := e.spoolsAt(args)
	if err != nil {
		return err
	}
	var total spool.Losses
	for _, dir := range dirs {
		l, err := spool.Dismiss(dir)
		if err != nil {
			return spoolFailure(err)
		}
		total.Dropped += l.Dropped
		total.Quarantined += l.Quarantined
		total.Damaged += l.Damaged
	}
	switch {
	case e.json():
		return e.printJSON(total)
	case total == (spool.Losses{}):
		return e.printf("nothing to dismiss: no event was dropped, set aside or damaged\n")
	}
	return e.printf("dismissed: %s\n", lossesText(total))
}

func waits(n uint64) string {
	if n == 1 {
		return "waits"
	}
	return "wait"
}

func (e *env) spoolCat(args []string, quarantine bool) error {
	dirs, err := e.spoolsAt(args)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		cat := e.catWaiting
		if quarantine {
			cat = e.catQuarantine
		}
		if err := cat(dir); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) catWaiting(dir string) error {
	out := newOutflow(e.stdout)
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

// appendEntry appends an event as a line like those of consume, without the place
// that it does not have yet.
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
		switch {
		case err != nil:
			e.warn("%v", err)
		case e.json():
			if err := e.printJSON(p); err != nil {
				return err
			}
		case p.Entry != nil:
			if err := e.printf("%s %s %s: %s\n", e.clock(p.Time), p.Entry.Topic, oneLine(p.Entry.ID), oneLine(p.Reason)); err != nil {
				return err
			}
		default:
			if err := e.printf("%s %s at %d: %s %s lost: %s\n", e.clock(p.Time), p.Damage.Segment, p.Damage.Offset, count(int64(p.Damage.Events), "event"), isOrAre(int64(p.Damage.Events)), oneLine(p.Reason)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *env) spoolVerify(args []string) error {
	dirs, err := e.spoolsAt(args)
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
		if e.json() {
			err = e.printJSON(struct {
				spoolDocument
				Good     uint64   `json:"good"`
				Torn     int64    `json:"torn"`
				Problems []string `json:"problems"`
			}{document(dir, report.Info), report.Read, report.Torn, append([]string{}, report.Problems...)})
		} else {
			err = e.printf("%s: %s good%s\n", oneLine(dir), count(int64(report.Read), "event"), indented(report.Problems))
		}
		if err != nil {
			return err
		}
	}
	if problems > 0 {
		return &failure{condition: diaspora.ErrSpoolFailed, text: fmt.Sprintf("spool verify: %s", count(int64(problems), "problem"))}
	}
	return nil
}

func indented(lines []string) string {
	var text strings.Builder
	for _, line := range lines {
		text.WriteString("\n  " + oneLine(line))
	}
	return text.String()
}

// spoolDrain sends what waits in all of the user's spools.
func (e *env) spoolDrain(ctx context.Context, timeout time.Duration) error {
	own, spools, err := e.spools()
	if err != nil {
		return err
	}
	var waiting []pool.Spool
	for _, s := range spools {
		if s.Err != nil {
			return spoolFailure(s.Err)
		}
		if s.Events > 0 {
			waiting = append(waiting, s)
		}
	}
	if len(waiting) == 0 {
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
	var sent, left, taken int64
	var why, nobody error
	away := map[string]bool{} // fabrics that could not be reached
	d := &draining{spools: len(waiting)}
	for _, w := range waiting {
		d.all += int64(w.Events)
	}
	hide := e.progress(false, d.progressLine())
	defer hide()
	for _, w := range waiting {
		events := int64(w.Events)
		cfg, err := e.configFor(w.Pool, own)
		if err != nil && w.Pool != own {
			text, hints := explanation(err)
			e.warn("%s of %s in %s: %s", count(events, "event"), orDash(poolName(w.Pool)), w.Dir, text)
			e.hint(hints)
			left += events
			if outcome.ExitCode(err) == outcome.ExitCode(diaspora.ErrUnauthenticated) {
				nobody = &failure{condition: diaspora.ErrUnauthenticated, text: "spool drain: nobody is logged in to the fabric of some of these events"}
			}
			continue
		}
		if err != nil {
			return err
		}
		outages := e.outages(cfg)
		if away[outages.path] { // rather than wait for each spool of a job of fifty processes
			left += events
			continue
		}
		cfg.SpoolDir = w.Dir
		logger, err := diaspora.OpenLogger(ctx, cfg)
		switch {
		case errors.Is(err, spool.ErrSubject) && shutOut(err): // printed at the end
			why = err
			left += events
			continue
		case errors.Is(err, spool.ErrSubject):
			e.warn("%v", err)
			left += events
			continue
		case errors.Is(err, diaspora.ErrConflict): // another process has it, and sends them
			taken += events
			continue
		case err != nil:
			return err
		}
		d.begin(logger)
		if err := logger.Close(ctx); err != nil {
			return err
		}
		stats := logger.Stats()
		d.end(stats.Acknowledged)
		sent += stats.Acknowledged
		left += stats.Spool.Events
		switch {
		case stats.Acknowledged > 0:
			outages.forget()
		case ctx.Err() == nil && stats.Spool.Events > 0 && errors.Is(stats.Spool.Why, diaspora.ErrUnavailable):
			away[outages.path] = true
			outages.remember()
		}
		if stats.Spool.Why != nil {
			why = e.aboutTopic(ctx, cfg, stats.Spool.Why)
		}
	}
	hide()
	if e.json() {
		if err := e.printJSON(struct {
			Acknowledged int64 `json:"acknowledged"`
			Waiting      int64 `json:"waiting"`
			InUse        int64 `json:"in_use"` // of processes that run
		}{sent, left, taken}); err != nil {
			return err
		}
	} else if len(waiting) == 0 {
		text, place := "no event waits in ", e.spoolPlace()
		if e.profile != "" {
			place = own.Dir
		}
		if len(spools) == 0 {
			text = "there is no spool in "
			if below := spoolsBelow(place); below != "" { // the caller means those: nothing was sent
				return &failure{condition: diaspora.ErrInvalid, text: text + place + below}
			}
		}
		e.say("%s", text+place)
	} else {
		text := fmt.Sprintf("%s acknowledged, %d waiting", count(sent, "event"), left)
		if taken > 0 {
			text += fmt.Sprintf("; %s left to the process that logs and sends them (restart it if its key file was replaced)", count(taken, "event"))
		}
		if dir, err := e.stateDir(); err == nil && e.getenv("DIASPORA_STATE_DIR") != "" {
			text += ", in " + dir // one of many, in a loop
		}
		e.say("%s", text)
	}
	return stranded(left, firstOf(why, nobody))
}

// stranded is the error of a command that leaves events in the spool: the refusal that
// only a person can mend, or [outcome.ErrSpooled].
func stranded(left int64, why error) error {
	switch {
	case left == 0:
		return nil
	case refusal(why):
		return why
	}
	text := fmt.Sprintf("%s %s in the spool", count(left, "event"), waits(uint64(left)))
	if why != nil {
		text += ": " + why.Error()
	}
	return &failure{condition: outcome.ErrSpooled, text: text}
}

// refusal reports whether err will stay until somebody does something about it.
func refusal(err error) bool {
	for _, condition := range []error{diaspora.ErrUnauthenticated, diaspora.ErrPermission, diaspora.ErrNotFound, diaspora.ErrInvalid} {
		if errors.Is(err, condition) {
			return true
		}
	}
	return false
}
