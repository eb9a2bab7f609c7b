package admission

import (
	"container/list"
	"net/netip"
	"sync"
)

// Strangers are the open connections of clients that are not authenticated yet. When there are too
// many, the oldest one of the address that has most of them is evicted. So a flood of silent
// connections evicts its own, and does not affect clients at other addresses.
type Strangers struct {
	mu        sync.Mutex // guards the fields below, and those of each Stranger
	byAddress map[netip.Addr]*list.List
	n         int
}

// Stranger is one of these connections.
type Stranger struct {
	of      *Strangers
	address netip.Addr
	close   func()
	place   *list.Element // nil once it has left the list
	heard   bool          // its credentials are being checked
}

// Add adds a connection. close must close it, and must not block.
func (s *Strangers) Add(address netip.Addr, close func()) *Stranger {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byAddress == nil {
		s.byAddress = make(map[netip.Addr]*list.List)
	}
	of := s.byAddress[address]
	if of == nil {
		of = list.New()
		s.byAddress[address] = of
	}
	x := &Stranger{of: s, address: address, close: close}
	x.place = of.PushBack(x)
	s.n++
	return x
}

// Len returns the number of connections.
func (s *Strangers) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// LenOf returns the number of connections from an address.
func (s *Strangers) LenOf(address netip.Addr) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if of := s.byAddress[address]; of != nil {
		return of.Len()
	}
	return 0
}

// Heard records whether the client's credentials are being checked. As long as they are, silent
// connections from the same address are evicted first.
func (x *Stranger) Heard(looking bool) {
	x.of.mu.Lock()
	defer x.of.mu.Unlock()
	x.heard = looking
}

// Leave removes the connection from the list, because it is closed or its client is authenticated.
// It reports false if the connection was not on the list, for example because it was evicted.
func (x *Stranger) Leave() bool {
	x.of.mu.Lock()
	defer x.of.mu.Unlock()
	return x.leave()
}

func (x *Stranger) leave() bool {
	if x.place == nil {
		return false
	}
	of := x.of.byAddress[x.address]
	of.Remove(x.place)
	if of.Len() == 0 {
		delete(x.of.byAddress, x.address)
	}
	x.place = nil
	x.of.n--
	return true
}

// Evict closes the oldest connection of the address that has most of them. It reports false if
// there are no connections.
func (s *Strangers) Evict() bool {
	s.mu.Lock()
	var busiest *list.List
	for _, of := range s.byAddress {
		if busiest == nil || of.Len() > busiest.Len() {
			busiest = of
		}
	}
	return s.evict(busiest)
}

// EvictFrom closes the oldest connection from an address. It reports false if there are none.
func (s *Strangers) EvictFrom(address netip.Addr) bool {
	s.mu.Lock()
	return s.evict(s.byAddress[address])
}

// evict closes the oldest connection of a list, preferring silent ones. The caller holds s.mu, and
// evict unlocks it.
func (s *Strangers) evict(of *list.List) bool {
	if of == nil {
		s.mu.Unlock()
		return false
	}
	oldest := of.Front().Value.(*Stranger)
	for e := of.Front(); e != nil; e = e.Next() {
		if x := e.Value.(*Stranger); !x.heard {
			oldest = x
			break
		}
	}
	oldest.leave()
	s.mu.Unlock()
	oldest.close()
	return true
}
