package admission

import (
	"container/list"
	"net/netip"
	"sync"
)

// AnonymousConns are the open connections of clients that are not authenticated yet. When there are
// too many, the oldest one of the address that has most of them is evicted. So a flood of silent
// connections evicts its own, and does not affect clients at other addresses.
type AnonymousConns struct {
	mu        sync.Mutex // guards the fields below, and those of each AnonymousConn
	byAddress map[netip.Addr]*list.List
	total     int
}

// AnonymousConn is one of these connections.
type AnonymousConn struct {
	list     *AnonymousConns
	address  netip.Addr
	close    func()
	element  *list.Element // nil once it has left the list
	checking bool          // its credentials are being checked
}

// Add adds a connection. close must close it, and must not block.
func (s *AnonymousConns) Add(address netip.Addr, close func()) *AnonymousConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byAddress == nil {
		s.byAddress = make(map[netip.Addr]*list.List)
	}
	conns := s.byAddress[address]
	if conns == nil {
		conns = list.New()
		s.byAddress[address] = conns
	}
	x := &AnonymousConn{list: s, address: address, close: close}
	x.element = conns.PushBack(x)
	s.total++
	return x
}

// Len returns the number of connections.
func (s *AnonymousConns) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// LenOf returns the number of connections from an address.
func (s *AnonymousConns) LenOf(address netip.Addr) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if conns := s.byAddress[address]; conns != nil {
		return conns.Len()
	}
	return 0
}

// SetChecking records whether the client's credentials are being checked. As long as they are,
// silent connections from the same address are evicted first.
func (x *AnonymousConn) SetChecking(checking bool) {
	x.list.mu.Lock()
	defer x.list.mu.Unlock()
	x.checking = checking
}

// Remove removes the connection from the list, because it is closed or its client is authenticated.
// It reports false if the connection was not on the list, for example because it was evicted.
func (x *AnonymousConn) Remove() bool {
	x.list.mu.Lock()
	defer x.list.mu.Unlock()
	return x.remove()
}

func (x *AnonymousConn) remove() bool {
	if x.element == nil {
		return false
	}
	conns := x.list.byAddress[x.address]
	conns.Remove(x.element)
	if conns.Len() == 0 {
		delete(x.list.byAddress, x.address)
	}
	x.element = nil
	x.list.total--
	return true
}

// Evict closes the oldest connection of the address that has most of them. It reports false if
// there are no connections.
func (s *AnonymousConns) Evict() bool {
	s.mu.Lock()
	var busiest *list.List
	for _, conns := range s.byAddress {
		if busiest == nil || conns.Len() > busiest.Len() {
			busiest = conns
		}
	}
	return s.evict(busiest)
}

// EvictFrom closes the oldest connection from an address. It reports false if there are none.
func (s *AnonymousConns) EvictFrom(address netip.Addr) bool {
	s.mu.Lock()
	return s.evict(s.byAddress[address])
}

// evict closes the oldest connection of a list, preferring silent ones. The caller holds s.mu, and
// evict unlocks it.
func (s *AnonymousConns) evict(conns *list.List) bool {
	if conns == nil {
		s.mu.Unlock()
		return false
	}
	oldest := conns.Front().Value.(*AnonymousConn)
	for e := conns.Front(); e != nil; e = e.Next() {
		if x := e.Value.(*AnonymousConn); !x.checking {
			oldest = x
			break
		}
	}
	oldest.remove()
	s.mu.Unlock()
	oldest.close()
	return true
}
