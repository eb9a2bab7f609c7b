// Package watch logs the files that appear in a folder as events, either one event for each file or
// one for each line. If the program is killed, some events are logged again, but with the same event
// IDs, so that readers can drop the repeats.
//
//	w, err := watch.Open(watch.Config{Dir: "/data/scans", Journals: dir, Topic: "scans", …})
//	err = w.Run(ctx, logger)                  // logs files until ctx ends
//	w.Finish(last)                            // logs files whose last line has no line feed
//	err = errors.Join(logger.Close(last), w.Close())
//
// # The guarantee
//
// Every file that matches the pattern, is complete and stays in the folder is logged. A file that
// was logged is not logged again unless its size or modification time has changed. If the program is
// killed, the next watch of the same folder and topic logs the files that were in progress again, with
// the same event IDs. [diaspora.Distinct] drops such repeats.
//
// A file is complete when its size and modification time have not changed for [Config.Settle]. They
// are checked again after the file has been read. If its lines are events and the last line has no
// line feed, the watch waits ten times as long, because the writer may have stopped in the middle of
// a line.
//
// # How the guarantee is kept
//
// For each folder and topic, a journal on disk lists the files that are finished. The watch processes
// a file in three steps:
//
//  1. It reads the file and passes the events to the [Logger]. The ID of an event is a hash of the
//     journal's random ID, the file's name, size and modification time, the line number and the value.
//  2. It waits until the Logger has reported for each event that the event is safe or was rejected as
//     invalid.
//  3. It adds a line for the file to the journal, and syncs the journal.
//
// If the process is killed before step 3 is complete, the journal has no line for the file, or an
// incomplete one, which is ignored. The next watch logs the file again. The event IDs are the same,
// because everything in the hash is the same. After step 3 the file is not read again unless it changes.
// If the Logger reports any other error for an event, the event may be lost, so the file is not added
// to the journal but logged again. The journal's first line, with the random ID, is on disk before the
// first file is read.
//
// The journal is locked, so two processes cannot log the same folder to the same topic.
//
// # Where to start reading
//
// [Watcher.Run] and scanFolder in watch.go are the main loop. fileInFlight in file.go takes one file through
// the three steps. journal.go defines the file format of the journal.
package watch
