// Package groups is the group coordinator of the embedded engine. It manages consumer groups,
// assigns partitions to their members, and stores the offsets that they commit. It answers as
// Apache Kafka 4.3 does.
//
// Start reading at [Coordinator] in groups.go and at group in group.go.
//
// # Two protocols
//
// With the classic protocol (KIP-62 and its successors) the members do most of the work. All
// members send JoinGroup and wait. When the last one has joined, the coordinator starts a new
// generation and picks a leader. The leader computes the assignment and sends it with SyncGroup;
// the other members send SyncGroup too and wait for it. Heartbeats keep a member's session alive
// and tell it when to join again. The requests of the classic protocol are in join.go and
// member.go, rebalances are in rebalance.go, and the state of a group is in classic.go.
//
// With the consumer protocol (KIP-848) there is a single request, a heartbeat, and the coordinator
// computes assignments itself. The logic is in a type of its own, consumerGroup, in the files
// consumer_*.go and assignor_*.go. It does not depend on disks, clocks or locks. The file
// coordinate_consumer.go connects it to the [Coordinator].
//
// All members of a group use the same protocol. An empty group changes its protocol when a member
// of the other one joins. Kafka's migration of groups that have members is not supported.
//
// # What survives
//
// Committed offsets, completed generations and everything that a KIP-848 member was told are in the
// journal before the answer is sent. After a crash members therefore continue with their next
// heartbeat, and members of older generations are fenced. Session timers start again when the
// coordinator opens, because no member could send heartbeats while it was down. A rebalance that
// was in progress is forgotten, and the generation before it is in force again, as in Kafka.
//
// If the journal cannot be written, for example because the disk is full, the answer is
// COORDINATOR_NOT_AVAILABLE, which clients retry. A crash loses nothing that was acknowledged.
//
// # Concurrency
//
// Each group has one mutex, which is held while the journal is written. So the changes of a group
// have the same order in memory and on disk. Groups do not wait for each other. A group has one
// timer for all its deadlines and no goroutine.
package groups
