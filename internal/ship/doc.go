// Package ship sends the events of a spool to the cluster.
//
// A [Shipper] is one goroutine, [Shipper.Run]. It works in rounds. In each round it reads
// some events from the spool, sends them, waits for the answer to every one of them, and
// then acknowledges in the spool those that the cluster has stored.
//
// # Order
//
// Events with the same key have to arrive in the order in which they were logged, even if
// some of them fail. The Kafka client sends several batches of a partition at once. If the
// broker refuses one of them, it refuses those behind it too, because their sequence numbers
// do not continue those that it has. The client then fails all events of the partition that
// it has, so the round can be repeated in order. This takes three precautions:
//
//   - The client has the whole round before it begins to send, see [ClientOpts]. It would
//     send events that come later, although those before them have failed.
//   - The first event to a topic makes up a round alone, because the client does not know the
//     topic's partitions yet and would begin to send before it has distributed all events.
//   - So does the first one after an hour, because a broker that has forgotten a producer
//     accepts any sequence number from it.
//
// If the process dies, the events of one round at most are sent twice, with the same IDs. On a
// link with a low latency that is 800 kB. On a long link a round is larger, see
// [Shipper.adapt], because the link is idle between the end of one round and the beginning
// of the next.
//
// # Failures
//
// What happens to an event that the cluster did not store depends on the reason (see
// [kafka.Judge]):
//
//   - The cluster will never store it, because it is too large or malformed: it is moved to
//     the spool's quarantine. If several events fail together, halving the round finds the
//     one to blame.
//   - Nobody is signed in: nothing is sent until a login succeeds.
//   - Anything else, a missing topic or a missing right for instance: the topic is held. Its
//     events stay in the spool while those of other topics are sent. Now and then the
//     Shipper tries the topic with its first event. Once that event is stored, the Shipper
//     goes back to the oldest event of the spool.
//
// # Load
//
// A thousand programs may have been waiting for the same cluster. After an outage each of
// them begins at a random moment and sends its backlog slowly at first, see [rampUp].
//
// Start reading at [Shipper.Run].
package ship
