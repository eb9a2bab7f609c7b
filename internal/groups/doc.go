// Package groups is the group coordinator of the embedded engine: it keeps
// consumer groups, shares out partitions among their members, and remembers the
// offsets that they commit. It answers as Apache Kafka 4.3 does.
//
// # Two protocols
//
// With the classic protocol (KIP-62 and its successors) the members do most of
// the work. All members send JoinGroup and wait; when the last one has arrived
// the coordinator starts a new generation and picks a leader; the leader
// computes the assignment and sends it with SyncGroup, which the others wait
// for too. Heartbeats keep a member's session alive and tell it when to join
// again. The requests of the classic protocol are in join.go, sync.go and
// member.go, and its state is in classic.go.
//
// With the consumer protocol (KIP-848) there is a single request, a heartbeat,
// and the coordinator computes assignments itself. The logic is a type of its
// own, consumerGroup, in the files consumer_*.go and assignor_*.go, which knows
// nothing of disks, clocks and locks. The file modern.go connects it to the
// [Coordinator].
//
// A group holds members of one protocol at a time. An empty group changes its
// protocol when a member of the other one joins; Kafka's migration of groups
// that have members is not offered.
//
// # What survives
//
// Committed offsets, completed generations and everything that a KIP-848 member
// was told are in the journal before the answer is sent. After a crash members
// therefore continue with their next heartbeat, and members of older
// generations are fenced. Session timers start again when the coordinator
// opens, because nobody could send heartbeats while it was down. A rebalance
// that was in progress is forgotten, and the generation before it is in force
// again, as in Kafka.
//
// If the journal cannot be written, because the disk is full for example, the
// answer is COORDINATOR_NOT_AVAILABLE, which clients retry. Nothing that was
// acknowledged is lost by a crash.
//
// # Concurrency
//
// Each group has one mutex, which is held while the journal is written, so the
// order of a group's changes is the same in memory and on disk. Groups do not
// wait for each other. A group has one timer for all its deadlines and no
// goroutine.
package groups
