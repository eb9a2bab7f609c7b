// Package watch turns the files that appear in a folder into events, each file or each line of it
// exactly once: what is logged again after the program was killed has the same event IDs.
//
//	w, err := watch.Open(watch.Config{Dir: "/data/scans", Journals: dir, Topic: "scans", …})
//	err = w.Run(ctx, logger)                  // until ctx ends
//	w.Finish(last)                            // files that were held back
//	err = errors.Join(logger.Close(last), w.Close())
//
// # The guarantee
//
// Every file that matches the pattern, is complete and stays in the folder is logged. A file that
// was logged is not logged again unless its size or time of change differ. If the program is killed,
// the next watch of the same folder and topic logs the files again that were in progress, under the same
// event IDs; [diaspora.Distinct] tells such repeats from new events.
//
// A file is complete when its size and time of change have been the same for [Config.Settle], also
// after it was read. If its lines are events and the last one has no line feed, the watch
// waits ten times as long, because the writer may have stopped in the middle of a line.
//
// # How it is kept
//
// A journal for each folder and topic lists the files that are finished. For each file, in this order:
//
//  1. The file is read and its events are handed to the [Logger]. Their IDs are hashes of the journal's
//     random ID, the file's name, size and time, the line number and the value.
//  2. The Logger says of each event that it is safe, or that it can never be logged.
//  3. The file's line in the journal is written and synced.
//
// A kill before step 3 is over leaves a journal without the file, or with a torn line, which
// does not count: the file is logged again, with the same IDs, since nothing that goes into them has changed.
// After step 3 the file is never read again. An event whose fate the Logger does not know keeps
// its file out of the journal. The journal's first line, with the random ID, is on disk before
// the first file is read.
//
// Two processes cannot log the same folder to the same topic: the journal is locked.
//
// # Where to start reading
//
// [Watcher.Run] and lookInto in watch.go are the loop; takenFile in file.go follows one file through
// the three steps; journal.go is the file format.
package watch
