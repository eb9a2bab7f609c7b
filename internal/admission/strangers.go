package admission

import (
	"container/list"
	"net/netip"
	"sync"
)

// Strangers are open connections of clients that have not yet shown who they are. When
// there are too many, the oldest one of the address that has most of them makes room: a
// flood of silent connections takes room from itself, not from people elsewhere.
type Strangers struct {
	mu        sync.Mutex // guards the fields below, and those of each Stranger
	byAddress map[netip.Addr]*list.List
	n         int
}

// Stranger is one of them.
type Stranger struct {
	of      *Strangers
	address netip.Addr
	close   func()
	place   *list.Element // nil once it is none any more
	heard   bool
}

// Add adds a connection. close ends it, without waiting for anything.
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

// Len returns how many there are.
func (s *Strangers) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// LenOf returns how many there are of an address.
func (s *Strangers) LenOf(address netip.Addr) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if of := s.byAddress[address]; of != nil {
		return of.Len()
	}
	return 0
}

// Heard notes that the client has shown credentials, and whether somebody is looking at
// them: meanwhile silent ones of the address make room before it does.
func (x *Stranger) Heard(looking bool) {
	x.of.mu.Lock()
	defer x.of.mu.Unlock()
	x.heard = looking
}

// Leave takes the connection off the list: it is closed, or its client is known now. It
// reports false if it was off the list, because it had to make room for instance.
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

// Evict closes the oldest connection of the address that has most of them. It reports
// false if there are none.
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

// EvictFrom closes the oldest connection of an address. It reports false if there are none.
func (s *Strangers) EvictFrom(address netip.Addr) bool {
	s.mu.Lock()
	return s.evict(s.byAddress[address])
}

// evict closes the oldest one of a list; it unlocks s.mu.
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
