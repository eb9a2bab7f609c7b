package gateway

import (
	"testing"
	"testing/synctest"
)

// TestAwaitGroup: awaitGroup waits only for requests that depend on other members of a group, until
// they are answered or the broker is gone.
func TestAwaitGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, key := range []int16{keyJoinGroup, keySyncGroup} {
			for name, end := range map[string]func(*inFlight){
				"answered": func(f *inFlight) { f.next(7) },
				"gone":     func(f *inFlight) { f.close() },
			} {
				var f inFlight
				f.init()
				f.add(pending{header: header{keyProduce, 9, 7}})
				f.awaitGroup() // hangs the test if it waits here
				f.next(7)
				f.add(pending{header: header{key, 3, 7}})
				waited := false
				go func() { f.awaitGroup(); waited = true }()
				synctest.Wait()
				if waited {
					t.Errorf("key %d: does not wait", key)
				}
				end(&f)
				synctest.Wait()
				if !waited {
					t.Errorf("key %d: waits although the request is %s", key, name)
				}
			}
		}
	})
}
