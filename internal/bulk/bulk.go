// Package bulk lets `diaspora produce` log many events with one call. With the method Send of a
// diaspora.Logger, each event costs a callback, its Record and a look at the clock. Next to the work of
// a program that is little, but it would be most of the work of a command that only passes lines on.
// Start reading at [Send].
package bulk

// Results is told what became of the events of one call of [Send]. Each event has one result. The
// methods are called like the callback of Send: one at a time, in a goroutine of the Logger or inside
// Send. They must be quick, and must not call the Logger.
type Results interface {
	// Logged says that n more events are logged.
	Logged(n int)
	// Failed says why the event with an index in the call is not logged.
	Failed(index int, err error)
}

// Send hands over events, a []diaspora.Event with one topic, to a *diaspora.Logger. It means the same
// as calling the Logger's method Send with each of them in turn. The Logger does not keep the slice
// itself, but what an event refers to must not be changed until the event has a result.
//
// Package diaspora sets this variable when it is initialized. The command imports that package, so this
// one cannot. Packages log and log/slog share log/internal in the same way.
var Send func(logger, events any, to Results)
