package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

const otherState = "set DIASPORA_STATE_DIR to a folder of yours on a local disk"

// checkSpoolFolder checks the folder in which the program creates its spools.
func checkSpoolFolder(_ context.Context, v *visit) Finding {
	home, dirs, err := v.Spools()
	switch { // the fabric or the profile determines the folder
	case err != nil && v.noKey:
		return notTried("credentials failed")
	case err != nil && v.noName:
		return notTried("profile failed")
	case err != nil:
		return failed(err, otherState)
	}
	learn := func() { v.home, v.dirs = home, dirs }
	at, _, err := folderFor(home)
	if err != nil {
		return failure(otherState, "%v", err)
	}
	if err := tryFolder(at); err != nil {
		return failure(otherState, "no spool can be made: %v", err)
	}
	if len(dirs) == 0 {
		return ok("%s has no spool yet, and can have one", home).and(learn)
	}
	return ok("%s has %s", home, count(len(dirs), "spool")).and(learn)
}

// checkSpoolFiles checks who can access each spool, and whether its files are complete. It does not
// read the events; "diaspora spool verify" does.
func checkSpoolFiles(_ context.Context, v *visit) Finding {
	var reports []spool.Report
	for _, dir := range v.dirs {
		if uid, known := ownerOf(dir); known && uid != v.user() {
			return failure("chown it, or "+otherState, "%s belongs to the user %d, not to you", dir, uid)
		}
		report, err := spool.Check(dir)
		if err != nil {
			return failure(`look with "diaspora spool verify"`, "%v", err)
		}
		if n := len(report.Problems); n > 0 {
			text := report.Problems[0]
			if n > 1 {
				text += fmt.Sprintf(" (and %d more)", n-1)
			}
			return failure(`see all with "diaspora spool verify"`, "%s: %s", dir, text)
		}
		reports = append(reports, report)
	}
	if len(reports) == 0 {
		return ok("there are none")
	}
	return ok("private, and whole as far as can be seen without reading the events").and(func() { v.spools = reports })
}

// checkLocks tests file locks in the folder of the spools.
func checkLocks(_ context.Context, v *visit) Finding {
	at := existing(v.home)
	if err := v.locks(at); err != nil {
		return warning(otherState+", and DIASPORA_CONFIG_DIR too", "in %s locks do not work: %v", at, err)
	}
	return ok("they work in %s", at)
}

// checkFileSystem warns about file systems that are not suitable for a spool.
func checkFileSystem(_ context.Context, v *visit) Finding {
	at := existing(v.home)
	kind, err := v.fileSystem(at)
	if err != nil {
		return warning(otherState, "%s: %v", at, err)
	}
	learn := func() { v.kind = kind }
	switch {
	case kind.InMemory:
		return warning(otherState, "%s is in memory (%s): pending events there are lost when the machine stops", at, kind.Name).and(learn)
	case kind.Shared && kind.Name != "":
		return warning(otherState, "%s is on %s: slow, and not there when the network is away", at, kind.Name).and(learn)
	case kind.Shared:
		return ok("of %s it cannot be known here", at).and(learn)
	}
	return ok("%s is on a local disk", at).and(learn)
}

const (
	spaceFails   = 16 << 20 // below this a spool accepts no events
	spaceWarns   = 1 << 30  // a spool may grow to this size
	entriesWarns = 1000
)

// diskSpace is the disk space that is available to this user, in bytes.
type diskSpace struct {
	free, total uint64
	entries     uint64 // number of files that can still be created; 0 if unknown
}

// checkSpace checks the free space for pending events.
func checkSpace(_ context.Context, v *visit) Finding {
	at := existing(v.home)
	space, err := v.space(at)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return ok("it cannot be known here")
	case err != nil:
		return warning(otherState, "%s: %v", at, err)
	}
	free, learn := fmt.Sprintf("%s of %s are free at %s", terminal.Size(space.free), terminal.Size(space.total), at), func() { v.left = space }
	switch {
	case space.free < spaceFails:
		return failure("make room, or "+otherState, "%s: events cannot be kept", free).and(learn)
	case space.free < spaceWarns:
		return warning("make room: a spool may grow to 1 GiB", "%s", free).and(learn)
	case space.entries > 0 && space.entries < entriesWarns:
		return warning("remove files", "only %d more files can be made at %s", space.entries, at).and(learn)
	}
	return ok("%s", free).and(learn)
}

// backlogWarns is how long events may be pending without a warning.
const backlogWarns = 5 * time.Minute

// checkBacklog checks the pending events: since when they are pending, and why.
func checkBacklog(_ context.Context, v *visit) Finding {
	var events uint64
	var bytes int64
	var oldest time.Time
	owned, foreign := false, ""
	var latest *spool.Info // the one whose reason says most about the present
	in := ""               // its folder
	for i := range v.spools {
		r := &v.spools[i].Info
		if r.Events == 0 {
			continue
		}
		events += r.Events
		bytes += r.Bytes
		if oldest.IsZero() || r.Oldest.Before(oldest) {
			oldest = r.Oldest
		}
		if latest == nil || r.MoreRecent(latest) {
			latest, in = r, v.dirs[i]
		}
		owned = owned || r.Used()
		if me := orElse(v.identity.Subject, v.cfg.Identity.Subject); me != "" && r.Subject != "" && r.Subject != me && !spool.IsUnbound(r.Subject) {
			foreign = r.Subject
		}
	}
	if events == 0 {
		return ok("no event waits")
	}
	why, noted := latest.Reason()
	if why != "" && !noted.IsZero() {
		why += fmt.Sprintf(" (noted %s ago)", span(max(0, v.Now().Sub(noted))))
	}
	age := v.Now().Sub(oldest)
	text := fmt.Sprintf("%s (%s) since %s", count(int(events), "event"), terminal.Size(uint64(bytes)), span(max(0, age)))
	of := TopicOf(why)
	unavailable := strings.Contains(why, diaspora.ErrUnavailable.Error())
	unauthenticated := strings.Contains(why, diaspora.ErrUnauthenticated.Error())
	switch {
	case foreign != "":
		return warning(`log in as the person who logged them, because nobody else may send them; or take them out with "diaspora spool discard TOPIC --to FILE"`, "%s, of another identity: %s", text, foreign)
	case owned && age < backlogWarns && why == "":
		return ok("%s, on their way", text)
	case of != "": // most likely, no other check is about this topic
		return warning(v.Mistyped(of, in, latest.Used()), "%s: %s", text, why)
	case owned && unauthenticated:
		return warning("replace the key file of the process that logs, or its login: it then sends the events within a minute",
			"%s: %s", text, why)
	case owned && unavailable:
		return warning("nothing to do for these events: the process that logs sends them once the cluster is reachable", "%s: %s", text, why)
	case owned:
		return warning("mend what other checks say, and the process that logs sends them", "%s: %s", text, orElse(why, "they are slow"))
	case unauthenticated || strings.Contains(why, diaspora.ErrPermission.Error()): // draining cannot help until this is fixed
		return warning(`mend that first; then run "diaspora spool drain"`, "%s: %s", text, why)
	}
	if unavailable {
		return warning(`once the cluster is reachable, run "diaspora spool drain"`, "%s: %s", text, why)
	}
	return warning(`run "diaspora spool drain"`, "%s: %s", text, orElse(why, "no process sends them"))
}

// TopicOf returns the topic that does not accept events, according to the reason why they are pending, or "".
func TopicOf(why string) string {
	if !strings.Contains(why, diaspora.ErrPermission.Error()) && !strings.Contains(why, diaspora.ErrNotFound.Error()) {
		return ""
	}
	_, after, _ := strings.Cut(why, `topic "`)
	topic, _, _ := strings.Cut(after, `"`)
	if diaspora.ValidTopic(topic) != nil {
		return ""
	}
	return topic
}

// checkQuarantine counts the events that the cluster has permanently rejected.
func checkQuarantine(_ context.Context, v *visit) Finding {
	var n uint64
	for _, r := range v.spools {
		n += r.Losses().Quarantined
	}
	if n > 0 {
		return warning(`see why with "diaspora spool cat --quarantine", then run "diaspora spool dismiss"`, "%s set aside, since the cluster never took them", count(int(n), "event"))
	}
	return ok("nothing was set aside")
}

// checkLosses counts the events that were dropped or damaged.
func checkLosses(_ context.Context, v *visit) Finding {
	var dropped, damaged uint64
	for _, r := range v.spools {
		l := r.Losses()
		dropped += l.Dropped
		damaged += l.Damaged
	}
	switch {
	case damaged > 0:
		return warning(`see "diaspora spool verify", check the disk, then run "diaspora spool dismiss"`, "%s damaged, %d dropped", count(int(damaged), "event"), dropped)
	case dropped > 0:
		return warning(`give the spool more room, or another policy, then run "diaspora spool dismiss"`, "%s dropped, since the spool was full", count(int(dropped), "event"))
	}
	return ok("nothing was lost")
}

// ownerOf returns the user ID of a directory's owner.
func ownerOf(dir string) (uid int, known bool) {
	info, err := os.Stat(dir)
	if err != nil {
		return 0, false
	}
	return fileOwner(info)
}
