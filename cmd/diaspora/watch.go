package main

import (
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
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/spool/pool"
	"github.com/diaspora-streams/diaspora/internal/terminal"
	"github.com/diaspora-streams/diaspora/internal/watch"
)

// watchOptions are the flags of produce --watch.
type watchOptions struct {
	dir     string
	pattern string
	settle  time.Duration
}

func (o watchOptions) validate(files []string) error {
	_, err := filepath.Match(o.pattern, "x")
	info, statErr := os.Stat(o.dir)
	switch {
	case statErr != nil && strings.HasPrefix(o.dir, "-"): // the next flag was taken for the value of --watch
		return misuse("write --watch DIR", "produce: the folder is missing after --watch")
	case statErr == nil && !info.IsDir():
		return misuse(fmt.Sprintf("give the folder, and a pattern for the files: --watch %s --pattern '*.json'", shellWord(filepath.Dir(o.dir))),
			"produce: --watch %s: it is not a folder", o.dir)
	case len(files) > 0:
		hint := "omit the files: --watch logs those in the folder"
		if o.pattern != anyName {
			hint = "put the pattern in quotes, or the shell replaces it by names of files: --pattern '*.json'"
		}
		return misuse(hint, "produce: --watch and files exclude each other (%s)", files[0]+agree(len(files), "", ", …"))
	case err != nil || o.pattern == "":
		return misuse("", "produce: --pattern %q: it is not a pattern such as '*.json'", o.pattern)
	case strings.ContainsRune(o.pattern, '/'):
		return misuse("", "produce: --pattern %q: it must match the names of files in the folder, which contain no /", o.pattern)
	case o.settle < 0:
		return misuse("", "produce: --settle is negative")
	}
	return nil
}

// anyName is the pattern of all files.
const anyName = "*"

// openWatch opens the folder and its journal.
func (p *produceRun) openWatch(o produceOptions, files []string) (*watch.Watcher, error) {
	if err := o.watch.validate(files); err != nil {
		return nil, err
	}
	spools, err := p.env.currentPool()
	if err != nil {
		return nil, err
	}
	p.source = &source{}
	w, err := watch.Open(watch.Config{
		Dir:           o.watch.dir,
		Pattern:       o.watch.pattern,
		Settle:        o.watch.settle,
		Journals:      journalFolder(spools.Dir),
		Topic:         p.topic,
		OtherJournals: p.env.otherJournals(spools),
		Event:         p.parse,
		Whole:         o.input == "file",
		Notify:        func(n watch.Notice) { p.notice(n, o.watch.settle) },
		Progress:      func(file string, content io.Reader) io.ReadCloser { return p.source.begin(file, content) },
	})
	if err == nil {
		return w, nil
	}
	if !errors.As(err, new(*watch.JournalError)) {
		hint := ""
		if errors.Is(err, fs.ErrNotExist) {
			hint = "create the folder, or wait until its disk is mounted"
		}
		if parent, name := filepath.Split(o.watch.dir); strings.ContainsAny(name, "*?[") && errors.Is(err, fs.ErrNotExist) {
			hint = fmt.Sprintf("give the pattern as a flag of its own, in quotes: --watch %s --pattern '%s'", shellWord(filepath.Clean(parent)), name)
		}
		return nil, misuse(hint, "produce: watch %s: %v", o.watch.dir, innermost(err))
	}
	var condition error
	hint := ""
	switch {
	case errors.Is(err, watch.ErrInUse):
		condition = diaspora.ErrConflict
		hint = "stop that process first; or, if it logs other files (another --pattern), log these to another topic, or set DIASPORA_STATE_DIR to a folder of their own"
	case errors.Is(err, watch.ErrNoJournal):
		condition, hint = diaspora.ErrSpoolFailed, "remove it to have all files logged again"
	case unwritable(err):
		hint = "set DIASPORA_STATE_DIR to a folder where you may write"
	}
	return nil, fail(condition, hint, "produce: the journal of %s: %v", o.watch.dir, err)
}

// journalFolder returns the folder with the journals that belong to a folder of spools.
func journalFolder(spools string) string {
	return filepath.Join(filepath.Dir(filepath.Dir(spools)), "watch", filepath.Base(spools))
}

// otherJournals returns the folders of journals that a watch would use with another login or key for the same fabric.
func (e *env) otherJournals(own pool.Pool) (dirs []string) {
	profiles, err := diaspora.UserProfiles(e.getenv)
	if err != nil {
		return nil
	}
	stored, address := storedProfiles(profiles), own.URL
	for _, p := range stored {
		if p.Name == own.Profile {
			address = p.URL
		}
	}
	state := filepath.Dir(filepath.Dir(own.Dir))
	pools := []pool.Pool{pool.New(state, "", address)}
	for _, p := range stored {
		if sameFabric(p.URL, address) {
			pools = append(pools, pool.New(state, p.Name, ""))
		}
	}
	for _, p := range pools {
		if p.Dir != own.Dir {
			dirs = append(dirs, journalFolder(p.Dir))
		}
	}
	return dirs
}

// runWatch logs files until ctx ends, and then those with a last line that has no line feed.
func (p *produceRun) runWatch(ctx context.Context) error {
	if err := p.watch.Run(ctx, p); err != nil {
		return journalFailure(err)
	}
	if p.failure() == nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), interruptedFlush)
		defer cancel()
		p.watch.Finish(last)
	}
	return nil
}

// journalFailure gives an error of writing the journal its exit code.
func journalFailure(err error) error {
	if err == nil {
		return nil
	}
	return fail(diaspora.ErrSpoolFailed, "", "produce: %v", err)
}

// Send logs an event of a watched file.
func (p *produceRun) Send(event diaspora.Event, done func(diaspora.Record, error)) {
	file, line := watch.Origin(event)
	p.log(file, line, event, nil, done)
}

// notice reports an event of the watch to the user.
func (p *produceRun) notice(n watch.Notice, settle time.Duration) {
	e := p.env
	switch n.What {
	case watch.Logged:
		if e.terminal(e.stderr) {
			e.say("logged %s: %s, %s", n.File, count(n.Events, "event"), terminal.Size(n.Bytes))
		}
	case watch.Refused:
		p.log(n.File, n.Line, diaspora.Event{}, n.Err, nil)
	case watch.RefusedFile:
		e.warn("%s: recorded in %s, and not tried again unless it changes or you touch it", n.File, p.watch.Journal())
	case watch.Unreadable:
		e.warn("%s: not logged yet: %s", n.File, innermost(n.Err))
	case watch.Growing:
		e.warn("%s has been changing for %v; it is logged once it has not changed for --settle (%v). If it never stops growing, begin a new file from time to time",
			n.File, n.After.Round(time.Second), settle)
	case watch.HalfLine:
		e.warn("%s: the last line has no line feed; such a file is logged when it has not changed for %v, or when you end this program", n.File, n.After)
	case watch.Empty:
		e.warn("%s is empty; it is logged once it has content", n.File)
	case watch.Again:
		e.warn("%s has changed since it was logged, and is logged again as a whole; if it was still being written, use a longer --settle", n.File)
	case watch.Unsettled:
		e.warn("%s changed within --settle (%v) and %s not logged; the next watch logs %s", count(n.Files, "file"), settle, agree(n.Files, "is", "are"), agree(n.Files, "it", "them"))
	case watch.FolderUnreadable:
		e.warn("%s cannot be read: %s; trying again", p.watch.Dir(), innermost(n.Err))
	case watch.FolderReadable:
		e.warn("%s can be read again", p.watch.Dir())
	case watch.FolderReplaced:
		e.warn("%s is another folder now; files of the old folder that were not logged yet are not logged", p.watch.Dir())
	case watch.NewFolders:
		e.warn(`%s not watched: log the files in %s with another "diaspora produce --watch"`, p.newNames(n, "folder"), agree(n.Files, "it", "each of them"))
	case watch.NewOtherCase:
		e.warn("%s not logged: only upper and lower case differ from the pattern", p.newNames(n, "file"))
	case watch.NewLinks:
		e.warn("%s not watched: use hard links (ln without -s), or copies", p.newNames(n, "symbolic link"))
	}
}

// newNames begins a message about what is new in the folder: "the new folder /data/scans/tuesday is".
func (p *produceRun) newNames(n watch.Notice, noun string) string {
	if n.Files == 1 {
		return fmt.Sprintf("the new %s %s is", noun, filepath.Join(p.watch.Dir(), n.File))
	}
	return fmt.Sprintf("%s in %s, such as %s, are", count(n.Files, "new "+noun), p.watch.Dir(), n.File)
}

// introduceWatch says which folder is watched, and which of its files were logged by an earlier run.
func (p *produceRun) introduceWatch(pattern string) {
	s, err := p.watch.Survey()
	text, notes := watchIntroduction(p.watch, pattern, s, err)
	p.env.say("%s", strings.Join(append([]string{text + "; end with Ctrl-C"}, notes...), "\n"))
	if s.Before > 0 {
		p.env.warn("%d of these files %s logged to %s before, with another login or key, and %s logged again: each has a journal of its own",
			s.Before, agree(s.Before, "was", "were"), p.topic, agree(s.Before, "is", "are"))
		p.env.hint("if you did not want that, end this program, and use the same profile or DIASPORA_KEY_FILE as before")
	}
}

// startRightsCheck reports a login that the cluster rejects, and a topic that does not exist or may not be written to. While
// the folder has no new files, nothing else would notice it. The function that it returns ends the check.
func (p *produceRun) startRightsCheck(ctx context.Context, cfg diaspora.Config) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		client, err := diaspora.Dial(ctx, cfg)
		rejected := loginRejected(err)
		if err == nil {
			condition, reason := kafka.Explain(kafka.CheckWrite(ctx, client, p.topic))
			client.Close()
			if rejected = condition == kafka.Permission || condition == kafka.NotFound; rejected {
				err = p.env.aboutTopic(ctx, cfg, &diaspora.TopicError{Op: "log", Topic: p.topic, Err: &diaspora.Error{Condition: conditions[condition], Reason: reason}})
			}
		} else {
			err = p.about(err)
		}
		// If there are events, run reports why they are not sent.
		if rejected && p.logger.Stats().Spool.Events == 0 {
			text, hints := explanation(err)
			p.env.warn("%s; new files wait on disk until this is solved", text)
			p.env.hint(hints...)
		}
	}()
	return func() { cancel(); <-done }
}

// watchIntroduction describes a watch: in one line what is in the folder, and in notes what else a person has to know.
func watchIntroduction(w *watch.Watcher, pattern string, s watch.Survey, err error) (text string, notes []string) {
	text = "watching " + w.Dir()
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	otherCase := ""
	if s.OtherCase {
		otherCase = " (only upper and lower case differ)"
	}
	switch {
	case err != nil:
		return text, nil // a notice reports the error
	case s.Files == 0:
		text += ": it has no files yet"
	case s.Matching == 0:
		text += fmt.Sprintf(": none of its %s matches the pattern '%s'", count(s.Files, "file"), pattern)
		if !strings.ContainsAny(pattern, "*?[") {
			note("a pattern must match the whole name, like '*.%s', and be in quotes: without them, the shell replaces it by names of files in the current folder", pattern[strings.LastIndex(pattern, ".")+1:])
		}
		if s.OtherCase {
			note("%s does not match%s", s.Unmatched, otherCase)
		}
	default:
		text += fmt.Sprintf(": %s %s, %d %s logged already", count(s.Matching, "file"), agree(s.Matching, "matches", "match"), s.Logged, agree(s.Logged, "is", "are"))
		for _, part := range []struct {
			n    int64
			text string
		}{
			{s.New, agree(s.New, "is", "are") + " new"},
			{s.Refused, agree(s.Refused, "was", "were") + " refused as a whole or in part"},
			{s.Changed, agree(s.Changed, "has", "have") + " changed since"},
			{s.Empty, agree(s.Empty, "is", "are") + " empty"},
		} {
			if part.n > 0 {
				text += fmt.Sprintf(", %d %s", part.n, part.text)
			}
		}
		if s.Refused > 0 {
			note("refused: %s; touch a file to try it again", s.RefusedFile+agree(s.Refused, "", ", …"))
		}
		for _, other := range slices.Sorted(maps.Keys(s.Elsewhere)) {
			note("%d of them %s logged to %s as well", s.Elsewhere[other], agree(s.Elsewhere[other], "was", "were"), other)
		}
		if n := s.Files - s.Matching; n > 0 {
			note("%s %s not match '%s', and %s not logged: %s%s", count(n, "file"), agree(n, "does", "do"), pattern, agree(n, "is", "are"), s.Unmatched+agree(n, "", ", …"), otherCase)
		}
	}
	if s.Folders+s.Links > 0 {
		var others []string
		if s.Folders > 0 {
			others = append(others, count(s.Folders, "folder"))
		}
		if s.Links > 0 {
			others = append(others, count(s.Links, "symbolic link"))
		}
		note("it also has %s, which %s not watched", strings.Join(others, " and "), agree(s.Folders+s.Links, "is", "are"))
	}
	if s.Matching > 0 {
		note("journal: %s", filepath.Dir(w.Journal()))
	}
	return text, notes
}
