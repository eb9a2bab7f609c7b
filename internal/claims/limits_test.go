package claims

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// limitedTo sets limits, and the operators' contact.
func limitedTo(limits Limits) func(*Config) {
	return func(cfg *Config) {
		cfg.Limits, cfg.Admission.Contact = limits, "help@example.org"
	}
}

// recordsOf counts the ledger's records of an operation.
func (c *testCluster) recordsOf(op string) (n int) {
	c.t.Helper()
	for _, value := range c.ledger() {
		var r record
		testkit.Must(c.t, json.Unmarshal(value, &r))
		if r.Op == op {
			n++
		}
	}
	return n
}

// TestRepeatsAreNotWritten: many concurrent requests to end the same thing write as many records as
// one request. They used to write one or two each, so anyone who may end something could fill the
// ledger.
func TestRepeatsAreNotWritten(t *testing.T) {
	c := newCluster(t)
	s := c.open(operatedBy(cleo))
	mustClaim(t, s, "weather")
	key, err := s.IssueKey(t.Context(), ada, diaspora.AccessKeyRequest{Name: "laptop", Read: true, Write: true})
	testkit.Must(t, err)
	atOnce := func(do func() error) {
		t.Helper()
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() {
				if err := do(); err != nil && !errors.Is(err, diaspora.ErrNotFound) && !errors.Is(err, diaspora.ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	atOnce(func() error { return s.RevokeKey(t.Context(), ada, key.ID) })
	atOnce(func() error { return s.Release(t.Context(), ada, "weather") })
	atOnce(func() error { _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "snow"}); return err })
	atOnce(func() error {
		_, err := s.IssueKey(t.Context(), ada, diaspora.AccessKeyRequest{Name: "desk", Read: true, Write: true})
		return err
	})
	atOnce(func() error {
		_, err := s.Block(t.Context(), cleo, diaspora.BlockRequest{Subject: ben, Why: "x"})
		return err
	})
	for op, want := range map[string]int{opRevokeKey: 1, opRelease: 1, opReleased: 1, opClaim: 2, opBlock: 1} {
		if got := c.recordsOf(op); got != want {
			t.Errorf("the ledger has %d records %q, want %d", got, op, want)
		}
	}
}

// TestLimits exceeds each limit with many concurrent requests, and again through a replica that
// starts later.
func TestLimits(t *testing.T) {
	for name, tt := range map[string]struct {
		limits Limits
		each   func(s *Service, n int) error
		want   int // how many of 12 requests succeed
		says   string
	}{
		"topics": {Limits{Topics: 3}, func(s *Service, n int) error {
			_, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: fmt.Sprint("t", n)})
			return err
		}, 3, "the limit is 3 (max-topics); release one, or ask"},
		"partitions": {Limits{Partitions: 10}, func(s *Service, n int) error {
			_, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: fmt.Sprint("t", n), Partitions: 4})
			return err
		}, 2, "the limit is 10 (max-partitions); claim with fewer, release a topic, or ask"},
		"keys": {Limits{Keys: 3}, func(s *Service, n int) error {
			_, err := s.IssueKey(t.Context(), ada, diaspora.AccessKeyRequest{Name: fmt.Sprint("k", n), Read: true, Write: true})
			return err
		}, 3, "the limit is 3 (max-keys); revoke one, or ask"},
		"keys ever": {Limits{KeysEver: 4}, func(s *Service, n int) error {
			key, err := s.IssueKey(t.Context(), ada, diaspora.AccessKeyRequest{Name: fmt.Sprint("k", n), Read: true, Write: true})
			if err == nil {
				err = s.RevokeKey(t.Context(), ada, key.ID)
			}
			return err
		}, 4, "the limit is 4 (max-keys-ever); use one that you have, or ask"},
		"records": {Limits{RecordsPerHour: 5}, func(s *Service, n int) error {
			_, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: fmt.Sprint("t", n)})
			return err
		}, 5, "the limit is 5 (max-records-per-hour); try again in an hour, or ask"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			s := c.open(limitedTo(tt.limits))
			var worked atomic.Int64
			refused := func(err error) bool {
				return errors.Is(err, diaspora.ErrPermission) && strings.Contains(err.Error(), tt.says) && strings.Contains(err.Error(), "ask the operators of this fabric: help@example.org")
			}
			var wg sync.WaitGroup
			for n := range 12 {
				wg.Go(func() {
					switch err := tt.each(s, n); {
					case err == nil:
						worked.Add(1)
					case !refused(err):
						t.Errorf("%v, want a refusal that says %q and whom to ask", err, tt.says)
					}
				})
			}
			wg.Wait()
			if got := worked.Load(); got != int64(tt.want) {
				t.Errorf("%d requests worked, want %d", got, tt.want)
			}
			if err := tt.each(c.open(limitedTo(tt.limits)), 12); !refused(err) {
				t.Errorf("through a replica that starts later: %v", err)
			}
			if _, err := s.Claim(t.Context(), ben, diaspora.ClaimRequest{Name: "another"}); err != nil {
				t.Errorf("somebody else: %v", err)
			}
		})
	}
}

// TestWhatOneHasCanBeGivenUp: above the hourly limit, topics can still be released and keys
// revoked.
func TestWhatOneHasCanBeGivenUp(t *testing.T) {
	c := newCluster(t)
	s := c.open(limitedTo(Limits{RecordsPerHour: 2}))
	mustClaim(t, s, "weather")
	key, err := s.IssueKey(t.Context(), ada, diaspora.AccessKeyRequest{Name: "k", Read: true, Write: true})
	testkit.Must(t, err)
	if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "snow"}); !errors.Is(err, diaspora.ErrPermission) {
		t.Fatalf("Claim over the limit = %v", err)
	}
	if err := errors.Join(s.RevokeKey(t.Context(), ada, key.ID), s.Release(t.Context(), ada, "weather")); err != nil {
		t.Error(err)
	}
	c.check()
}

// TestHourly counts in a sliding window of an hour.
func TestHourly(t *testing.T) {
	s := newState()
	hour := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for i := range 60 { // one a minute
		s.count(record{By: ada, Time: hour.Add(time.Duration(i) * time.Minute)})
	}
	for after, want := range map[time.Duration]int{
		-30 * time.Minute: 60, // the writer's clock is ahead of ours
		59 * time.Minute:  60,
		60 * time.Minute:  60,
		90 * time.Minute:  30,
		105 * time.Minute: 15,
		3 * time.Hour:     0,
	} {
		if got := s.recent[ada].at(hour.Add(after)); got != want {
			t.Errorf("%v after the hour began there were %d records within an hour, want %d", after, got, want)
		}
	}
	s.count(record{By: ada, Time: hour.Add(75 * time.Minute)})
	if got := s.recent[ada].at(hour.Add(75 * time.Minute)); got != 46 {
		t.Errorf("a quarter into the next hour there were %d records, want 45 and one", got)
	}
	// A clock that was a year ahead for a moment does not affect a whole year.
	s.count(record{By: ada, Time: hour.AddDate(1, 0, 0)})
	s.count(record{By: ada, Time: hour.Add(76 * time.Minute)})
	if got := s.recent[ada].at(hour.Add(76 * time.Minute)); got != 1 {
		t.Errorf("after a record of next year there are %d, want 1", got)
	}
	// A subject that writes nothing any more is forgotten.
	s.count(record{By: ben, Time: hour.AddDate(0, 0, 2)})
	if _, known := s.recent[ada]; known {
		t.Error("somebody who wrote nothing for two days is still counted")
	}
}

// TestKeyIDsAreRandom: a new ID is used without looking it up, so that the IDs of keys that ended
// long ago need not be kept. That requires all 80 bits to be random.
func TestKeyIDsAreRandom(t *testing.T) {
	const n, letters = 32_000, "abcdefghijklmnopqrstuvwxyz234567"
	seen := make(map[string]bool, n)
	var count [keyIDLetters][256]int
	for range n {
		id := newKeyID()
		if err := checkKeyID(id); err != nil || seen[id] {
			t.Fatalf("the ID %s was drawn before: %v %v", id, seen[id], err)
		}
		seen[id] = true
		for i := range keyIDLetters {
			count[i][id[len(keyIDPrefix)+i]]++
		}
	}
	for i := range count {
		for _, letter := range []byte(letters) { // expected 1,000 times each, within seven standard deviations
			if got := count[i][letter]; got < 780 || got > 1220 {
				t.Errorf("letter %d is %c in %d of %d IDs", i, letter, got, n)
			}
		}
	}
}
