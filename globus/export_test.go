package globus

import "testing"

// LockStore takes a store's lock, as another process would.
func LockStore(t *testing.T, s *Store) (unlock func()) {
	t.Helper()
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return unlock
}
