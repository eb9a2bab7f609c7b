// Package ship sends the events of a spool to the cluster.
//
// A [Shipper] is one goroutine, [Shipper.Run]. It works in rounds. In each round it reads
// some events from the spool, sends them, waits for the answer to every one of them, and
// then acknowledges in the spool those that the cluster has stored.
//
// # Order
//
// Events with the same key have to arrive in the order in which they were logged, even if
// some of them fail. So a round fits into one batch per partition: if the batch fails, no
// later event of its partition has been sent, and the round can be repeated. The first event
// to a topic makes up a round alone, because the Kafka client does not know the topic's
// partitions yet and could split a larger round.
//
// If the process dies, the events of one round at most are sent twice, with the same IDs.
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
