package main

import (
	"bufio"
	"cmp"
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
# move events from a mistyped topic to the right one
diaspora spool discard wether --to wether.ndjson
diaspora produce weather --input ndjson wether.ndjson

# in a script: delete the events
diaspora spool discard wether --yes`,
	long: `
As long as a topic does not exist, or you have no permission to write to it, its events stay in the
spool. This command removes them. With --to, it first writes them to a file, with their keys,
headers, times and IDs, as input for produce --input ndjson. The file must not exist yet; "-" is
standard output. Before the command changes anything, it asks you to type the name of the topic.
--yes skips this question.

If "produce --watch" logged the events to a mistyped topic, do not log them again yourself. Start
produce --watch with the right topic: it logs the files in its folder again.

If the topic was right, and you discard the events for another reason, save them with --to, and log
that file with produce --input ndjson. produce --watch does not log the files to the same topic
again, because its journal records them as logged.

Without a DIRECTORY, the command removes the events from all spools of the current profile. It does not
change a spool that another process is using: stop that program or service first.`,
	args: arguments{min: 1, max: 2, missing: "the topic is missing"},
}

func (e *env) spoolDiscard(ctx context.Context, args []string, to string, yes bool) error {
	topic := args[0]
	if to == "-" && e.json() {
		return misuse("", "spool discard: --to - and -o %s exclude each other", e.output)
	}
	flags := ""
	if to != "" {
		flags += " --to " + shellWord(to)
	}
	if yes {
		flags += " --yes"
	}
	dirs, n, err := e.spoolsWith(topic, args[1:], flags)
	if err != nil {
		return err
	}
	if !yes {
		them := agree(n, "it", "them")
		fate := "permanently deletes " + them + "; --to FILE saves " + them + " to a file first"
		if to != "" {
			fate = "moves " + them + " from the spool to " + to
		}
		e.warn("%s for topic %s %s; discarding %s", count(n, "event"), topic, agree(n, "waits", "wait"), fate)
		if err := e.confirm(ctx, "discard "+them, topic, "spool discard"); err != nil {
			return err
		}
	}
	var parts []*discarding
	defer func() {
		for _, d := range parts {
			d.spool.Close()
		}
	}()
	for _, dir := range dirs { // all of them, before anything is changed
		d, err := openDiscarding(ctx, dir, topic)
		if err != nil {
			return err
		}
		parts = append(parts, d)
	}
	if to != "" {
		if err := e.saveEvents(to, parts); err != nil {
			return err
		}
	}
	discarded, watched, folder := 0, 0, ""
	for _, d := range parts {
		if err := d.discard(); err != nil {
			return spoolFailure(fmt.Errorf("%w; %s %s discarded", err, count(discarded, "event"), agree(discarded, "was", "were")))
		}
		discarded += len(d.positions)
		if watched += d.watched; d.watched > 0 {
			folder = d.folder
		}
	}
	if e.json() {
		return e.printJSON(struct {
			Topic     string `json:"topic"`
			Discarded int    `json:"discarded"`
			File      string `json:"file,omitempty"`
		}{topic, discarded, to})
	}
	text, saved := count(discarded, "event")+" discarded", to != "" && to != "-"
	if saved {
		text = fmt.Sprintf("%s taken out, and saved in %s", count(discarded, "event"), to)
	}
	if saved && watched < discarded {
		text += fmt.Sprintf(`; "diaspora produce TOPIC --input ndjson %s" logs them to another topic`, to)
	}
	e.say("%s", text)
	if watched == 0 {
		return nil
	}
	which := "the files that they came from"
	if watched < discarded {
		which = fmt.Sprintf("the files that %d of them came from", watched)
	}
	text = fmt.Sprintf("to log %s to another topic, watch %s with that topic", which, folder)
	if saved {
		text += fmt.Sprintf("; do not log %s to it as well. A watch with topic %q and the same DIASPORA_STATE_DIR does not log them again: for that, log %s", to, topic, to)
	} else {
		text += fmt.Sprintf("; a watch with topic %q and the same DIASPORA_STATE_DIR does not log them again", topic)
	}
	e.say("%s", text)
	return nil
}

// spoolsWith returns the spools that have pending events for a topic, and the number of these events. It looks
// into the spools that args name or else into those of the profile, because in another fabric a topic of the same
// name is another topic. flags are those of the command, for a hint: without --to, a hint to discard the events elsewhere
// would delete what is to be saved.
func (e *env) spoolsWith(topic string, args []string, flags string) (dirs []string, n int64, err error) {
	all, home := args, ""
	if len(args) == 0 {
		p, err := e.currentPool()
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
	where, hint := "", ""
	if len(topics) > 0 {
		hint = "events wait for " + strings.Join(slices.Sorted(maps.Keys(topics)), ", ")
	}
	if home != "" {
		where = " in " + home
		if other := e.otherSpoolWith(topic, all); other != "" {
			hint = fmt.Sprintf("they are in a spool of another profile or credential; remove them there with \"diaspora spool discard %s %s%s\", or set DIASPORA_KEY_FILE or DIASPORA_PROFILE as when they were logged", topic, shellWord(other), flags)
		}
	}
	return nil, 0, fail(diaspora.ErrNotFound, hint, "spool discard: no events for topic %q are pending%s", topic, where)
}

// otherSpoolWith returns another spool of the user that has events for a topic, or "". It is only for a hint, so it
// skips spools that cannot be read.
func (e *env) otherSpoolWith(topic string, except []string) string {
	all, _ := e.spoolsAt(nil)
	for _, dir := range all {
		if pending, _ := spool.Topics(dir); pending[topic] > 0 && !slices.Contains(except, dir) {
			return dir
		}
	}
	return ""
}

// discarding has the events that are to be removed from one spool.
type discarding struct {
	dir       string
	topic     string
	spool     *spool.Spool
	positions []uint64

	note     string              // why events are pending, as the last process said
	journals string              // folder with the journals of "produce --watch" for this spool
	folders  []string            // folders that "produce --watch" has logged to this topic through this spool
	watched  int                 // number of events whose file is still in one of the folders
	folder   string              // the folder of the last one
	files    map[string][]string // the files, by folder
}

func openDiscarding(ctx context.Context, dir, topic string) (*discarding, error) {
	info, err := spool.Inspect(dir)
	if err != nil {
		return nil, spoolFailure(err)
	}
	s, err := spool.Open(ctx, spool.Options{Dir: dir, Subject: info.Subject, Same: func(string) bool { return true }}) // of any identity
	if errors.Is(err, spool.ErrInUse) {
		return nil, hinted(fail(diaspora.ErrConflict, "stop that program or service first; its events stay in the spool", "spool discard: %v; nothing has changed", err),
			`or name a spool that no process uses, from the column DIRECTORY of "diaspora spool ls"`)
	}
	if err != nil {
		return nil, spoolFailure(err)
	}
	d := &discarding{dir: dir, topic: topic, spool: s, note: info.Note, files: map[string][]string{}}
	if dir, err := filepath.Abs(dir); err == nil {
		d.journals = journalFolder(filepath.Dir(dir))
		d.folders = watch.Folders(d.journals, topic)
	}
	return d, nil
}

// each calls do with each event for the topic, and records the event's position and file.
func (d *discarding) each(do func(*spool.Record) error) error {
	for r, err := range d.spool.Pending() {
		if err != nil {
			return err
		}
		if r.Topic != d.topic {
			continue
		}
		d.positions = append(d.positions, r.Position)
		if folder, file := d.fileOf(&r); folder != "" {
			d.watched, d.folder = d.watched+1, folder
			if files := d.files[folder]; len(files) == 0 || files[len(files)-1] != file { // not once for each line
				d.files[folder] = append(files, file)
			}
		}
		if err := do(&r); err != nil {
			return err
		}
	}
	return nil
}

// fileOf returns the file of an event and the folder that still has it, or "".
func (d *discarding) fileOf(r *spool.Record) (folder, file string) {
	for _, h := range r.Headers {
		if h.Key != watch.HeaderFile || filepath.Base(string(h.Value)) != string(h.Value) {
			continue
		}
		for _, folder := range d.folders {
			if info, err := os.Lstat(filepath.Join(folder, string(h.Value))); err == nil && info.Mode().IsRegular() {
				return folder, string(h.Value)
			}
		}
	}
	return "", ""
}

// discard removes the events durably.
func (d *discarding) discard() error {
	if d.positions == nil { // otherwise saveEvents has read them
		if err := d.each(func(*spool.Record) error { return nil }); err != nil {
			return err
		}
	}
	err := d.spool.Discard(d.positions...)
	if errors.Is(err, spool.ErrHoles) {
		return hinted(fmt.Errorf("%s: %w", d.dir, err), `send the events of other topics that are between them first: "diaspora spool drain"`)
	}
	if err == nil {
		if strings.Contains(d.note, fmt.Sprintf("topic %q", d.topic)) { // the events of other topics do not wait for this one
			_ = d.spool.Note("") // only a text
		}
		for folder, files := range d.files { // only the first line of a later watch depends on this, so errors are ignored
			_ = watch.Discarded(d.journals, folder, d.topic, files)
		}
	}
	return errors.Join(err, d.spool.Close())
}

// saveEvents writes the events to a new file, durably.
func (e *env) saveEvents(name string, parts []*discarding) (err error) {
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
			if kept := cmp.Or(file.Sync(), file.Close(), disk.SyncFolder(filepath.Dir(name))); err == nil && kept != nil {
				err = fmt.Errorf("spool discard: %w; nothing was discarded", kept)
			}
		}()
		to = file
	}
	out := bufio.NewWriterSize(to, 64<<10)
	var line []byte
	write := func() error {
		for _, d := range parts {
			if err := d.each(func(r *spool.Record) error {
				line = appendEntry(line[:0], &r.Entry)
				_, err := out.Write(line)
				return err
			}); err != nil {
				return err
			}
		}
		return out.Flush()
	}
	if err := write(); err != nil {
		return fmt.Errorf("spool discard: write %s: %w; nothing was discarded", name, err)
	}
	return nil
}
