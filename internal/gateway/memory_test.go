package gateway

import (
	"net"
	"runtime"
	"testing"
	"time"
)

// memory returns how much memory this process uses after a garbage collection.
func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func TestIdleConnectionsAreSmall(t *testing.T) {
	const n, limit = 1000, 32 << 10
	f := start(t)
	f.tokens.issue("ada-token", ada, time.Hour)
	f.login(t, "ada-token").Close()
	before := memory()
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = f.login(t, "ada-token")
		defer conns[i].Close()
	}
	each := (memory() - before) / n
	t.Logf("%d bytes for each of %d connections, the client's side included", each, n)
	if each > limit {
		t.Errorf("an idle connection holds %d bytes, want at most %d", each, limit)
	}
}
