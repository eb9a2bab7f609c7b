package groups

import (
	"testing"
	"time"
)

func TestConvertedEntries(t *testing.T) {
	inWorld(t, func(w *world) {
		id, _, _ := w.topics.ByName("t")
		w.store.entries = []entry{
			EmptyGroup{Group: "g", ProtocolType: "consumer", Generation: 41, Since: time.Now()}.Entry(),
			CommittedOffset{Group: "g", Topic: "t", TopicID: id, Partition: 1, Offset: 5, LeaderEpoch: -1, Metadata: "m", Committed: time.Now()}.Entry(),
			CommittedOffset{Group: "simple", Topic: "u", Partition: 2, Offset: 6, LeaderEpoch: 3, Committed: time.Now()}.Entry(),
		}
		w.kill()
		if got, want := showFetch(w.OffsetFetch(everything, fetchRequest(10, "g", nil)).Groups[0]), "g 0; t/1: 1=5,-1,m,0; "; got != want {
			t.Errorf("OffsetFetch = %q, want %q", got, want)
		}
		if got, want := showFetch(w.OffsetFetch(everything, fetchRequest(10, "simple", nil)).Groups[0]), "simple 0; u/2: 2=6,3,,0; "; got != want {
			t.Errorf("OffsetFetch = %q, want %q", got, want)
		}
		a := w.consumer("g")
		w.rebalanced(a)
		if a.generation != 42 {
			t.Errorf("generation %d, want 42", a.generation)
		}
	})
}
