package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/spool/pool"
	"github.com/diaspora-streams/diaspora/internal/watch"
)

var spoolDiscardHelp = help{
	use:   "discard TOPIC [DIRECTORY]",
	short: "remove the events of a topic from the spool without sending them",
	examples: `
# move events that were logged to a mistyped topic
diaspora spool discard wether --to wether.ndjson
diaspora produce weather --input ndjson wether.ndjson

# in a script: delete the events
diaspora spool discard wether --yes`,
	long: `
Events are pending for as long as their topic does not exist, or you have no permission to write to
it. This command removes them. With --to, it first writes them to a file, with their keys, headers,
times and IDs, as input for produce --input ndjson. The file must not exist yet; "-" is standard
output. Before anything is changed, you are asked to type the name of the topic; --yes skips this,
with or without --to.

Do not log events again that "produce --watch" logged to a mistyped topic. If you start produce with
the right topic, it logs the files in its folder again by itself. With the same topic, it does not,
because its journal records the files as logged. In that case, save the events with --to, and log
that file.

Without a DIRECTORY, the command removes the events from all spools of the profile. It does not
change a spool that another process is using: end that process first.`,
	formats: answerFormats,
	args:    arguments{min: 1, max: 2, missing: "the topic is missing"},
}

func (e *env) spoolDiscard(ctx context.Context, args []string, to string, yes bool) error {
	topic := args[0]
	if to == "-" && e.json() {
		return misuse("", "spool discard: --to - and -o %s exclude each other", e.output)
	}
	dirs, n, err := e.holding(topic, args[1:])
	if err != nil {
		return err
	}
	if !yes {
		if err := e.confirmDiscard(ctx, topic, n, to); err != nil {
			return err
		}
	}
	var batches []*discarding
	defer func() {
		for _, b := range batches {
			b.spool.Close()
		}
	}()
	for _, dir := range dirs { // all, before anything is changed
		b, err := openDiscarding(ctx, dir, topic)
		if err != nil {
			return err
		}
		batches = append(batches, b)
	}
	if to != "" {
		if err := e.saveEvents(to, batches); err != nil {
			return err
		}
	}
	discarded, watched, folder := 0, 0, ""
	for _, b := range batches {
		if err := b.discard(); err != nil {
			return spoolFailure(fmt.Errorf("%w; %s %s discarded", err, count(int64(discarded), "event"), wasOrWere(int64(discarded))))
		}
		discarded += len(b.positions)
		if watched += b.watched; b.watched > 0 {
			folder = b.folder
		}
	}
	if e.json() {
		return e.printJSON(struct {
			Topic     string `json:"topic"`
			Discarded int    `json:"discarded"`
			File      string `json:"file,omitempty"`
		}{topic, discarded, to})
	}
	text := count(int64(discarded), "event") + " discarded"
	if to != "" && to != "-" && watched < discarded {
		text += fmt.Sprintf(`; "diaspora produce TOPIC --input ndjson %s" logs them to another topic`, to)
	}
	e.say("%s", text)
	if watched > 0 {
		which := "the files that they came from"
		if watched < discarded {
			which = fmt.Sprintf("the files that %d of them came from", watched)
		}
		text := fmt.Sprintf("to log %s to another topic, watch %s with that topic", which, folder)
		if to != "" && to != "-" {
			text += fmt.Sprintf("; do not log %s to it as well. A watch with topic %q does not log them again: for that, log %s", to, topic, to)
		} else {
			text += fmt.Sprintf("; a watch with topic %q does not log them again", topic)
		}
		e.say("%s", text)
	}
	return nil
}

// holding returns the spools in which events for a topic wait, and how many there are.
func (e *env) holding(topic string, args []string) (dirs []string, n int64, err error) {
	all, home := args, ""
	if len(args) == 0 { // the same topic of another fabric is another one
		p, err := e.pool()
		if err != nil {
			return nil, 0, err
		}
		spools, err := pool.Spools(p)
		if err != nil {
			return nil, 0, err
		}
		home = p.Dir
		for _, s := range spools {
			all = append(all, s.Dir)
		}
	}
	topics := map[string]int64{}
	for _, dir := range all {
		pending, err := spool.Topics(dir)
		if err != nil {
			return nil, 0, spoolFailure(err)
		}
		if maps.Copy(topics, pending); pending[topic] > 0 {
			dirs, n = append(dirs, dir), n+pending[topic]
		}
	}
	if n > 0 {
		return dirs, n, nil
	}
	f := &failure{condition: diaspora.ErrNotFound, text: fmt.Sprintf("spool discard: no event for topic %q waits", topic)}
	if len(topics) > 0 {
		f.hints = []string{"events wait for " + strings.Join(slices.Sorted(maps.Keys(topics)), ", ")}
	}
	if home == "" {
		return nil, 0, f
	}
	f.text += " in " + home
	if elsewhere := e.holdingElsewhere(topic, all); elsewhere != "" {
		f.hints = []string{fmt.Sprintf("they wait in a spool of another profile or credential; take them out with \"diaspora spool discard %s %s\"", topic, shellWord(elsewhere))}
	}
	return nil, 0, f
}

// holdingElsewhere returns one of this user's other spools that has events for a topic, or "". It serves a
// hint only, so a spool that cannot be read is passed over.
func (e *env) holdingElsewhere(topic string, but []string) string {
	all, err := e.spoolsAt(nil)
	if err != nil {
		return ""
	}
	for _, dir := range all {
		if slices.Contains(but, dir) {
			continue
		}
		if pending, _ := spool.Topics(dir); pending[topic] > 0 {
			return dir
		}
	}
	return ""
}

// confirmDiscard says what will be done and has the person type the topic's name.
func (e *env) confirmDiscard(ctx context.Context, topic string, n int64, to string) error {
	fate := "deletes them for good; --to FILE would keep them"
	if to != "" {
		fate = "takes them out of the spool, into " + to
	}
	e.warn("%s for topic %s %s; discarding %s", count(n, "event"), topic, waits(uint64(n)), fate)
	fmt.Fprintf(e.stderr, "Type the topic's name to discard them: ")
	answer, err := readAnswer(ctx, e.stdin)
	if err == nil && answer == topic {
		return nil
	}
	if !e.terminal(e.stdin) {
		fmt.Fprintln(e.stderr)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &failure{
		text:  fmt.Sprintf("spool discard: the name %q was not typed; nothing has changed", topic),
		hints: []string{"--yes does not ask"},
	}
}

// discarding is what is to be taken out of one spool.
type discarding struct {
	dir       string
	topic     string
	spool     *spool.Spool
	positions []uint64

	folders []string // that were watched for the topic, and logged to this spool
	watched int      // events that came from a file that is in one of them
	folder  string   // the last such
}

// note takes note of an event that is to be taken out.
func (b *discarding) note(r *spool.Record) {
	b.positions = append(b.positions, r.Position)
	for _, h := range r.Headers {
		if h.Key != watch.HeaderFile || filepath.Base(string(h.Value)) != string(h.Value) {
			continue
		}
		for _, folder := range b.folders {
			if info, err := os.Lstat(filepath.Join(folder, string(h.Value))); err == nil && info.Mode().IsRegular() {
				b.watched, b.folder = b.watched+1, folder
				return
			}
		}
	}
}

func openDiscarding(ctx context.Context, dir, topic string) (*discarding, error) {
	info, err := spool.Inspect(dir)
	if err != nil {
		return nil, spoolFailure(err)
	}
	s, err := spool.Open(ctx, spool.Options{Dir: dir, Subject: info.Subject, Same: func(string) bool { return true }}) // whoever logged them
	if errors.Is(err, spool.ErrInUse) {
		return nil, &failure{condition: diaspora.ErrConflict, text: "spool discard: " + err.Error() + "; nothing has changed",
			hints: []string{"end that process first; its events stay in the spool"}}
	}
	if err != nil {
		return nil, spoolFailure(err)
	}
	b := &discarding{dir: dir, topic: topic, spool: s}
	if dir, err := filepath.Abs(dir); err == nil {
		b.folders = watch.Folders(journalFolder(filepath.Dir(dir)), topic)
	}
	return b, nil
}

// each reads the events for the topic.
func (b *discarding) each(do func(*spool.Record) error) error {
	for r, err := range b.spool.Pending() {
		if err == nil && r.Topic == b.topic {
			err = do(&r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// discard takes the events out, durably.
func (b *discarding) discard() error {
	if b.positions == nil {
		if err := b.each(func(r *spool.Record) error {
			b.note(r)
			return nil
		}); err != nil {
			return err
		}
	}
	err := b.spool.Discard(b.positions...)
	if errors.Is(err, spool.ErrHoles) {
		return hinted(fmt.Errorf("%s: %w", b.dir, err), `the events of other topics between them have to go first: "diaspora spool drain"`)
	}
	if err == nil {
		err = b.spool.Close()
	}
	return err
}

// saveEvents writes the events to a new file. They are safe there when it returns.
func (e *env) saveEvents(name string, batches []*discarding) (err error) {
	var to io.Writer = e.stdout
	if name != "-" {
		file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return misuse("choose another name", "spool discard: %s exists already; nothing has changed", name)
		}
		if err != nil {
			return fmt.Errorf("spool discard: %w; nothing has changed", err)
		}
		defer func() {
			if kept := firstOf(file.Sync(), file.Close(), disk.SyncFolder(filepath.Dir(name))); err == nil && kept != nil {
				err = fmt.Errorf("spool discard: %w; nothing was discarded", kept)
			}
		}()
		to = file
	}
	out := bufio.NewWriterSize(to, 64<<10)
	var line []byte
	for _, b := range batches {
		err := b.each(func(r *spool.Record) error {
			b.note(r)
			line = appendEntry(line[:0], &r.Entry)
			_, err := out.Write(line)
			return err
		})
		if err != nil {
			return fmt.Errorf("spool discard: write %s: %w; nothing was discarded", name, err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("spool discard: write %s: %w; nothing was discarded", name, err)
	}
	return nil
}
