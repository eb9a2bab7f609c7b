package commitlog

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
)

func TestZZSeed(t *testing.T) {
	s, err := strconv.Atoi(os.Getenv("SEED"))
	if err != nil {
		t.Skip()
	}
	for try := range 30 {
		seed := uint64(s)
		var count atomic.Int64
		c := crasher{rng: rand.New(rand.NewPCG(seed, 1)), states: &count, limit: 1 << 40}
		h := &history{sync: seed%2 == 0, clock: newClock()}
		c.run(disktest.New(), h, 0, programSteps)
		t.Log(try, count.Load())
		if c.err != nil {
			t.Fatal(seed, count.Load(), c.err)
		}
	}
}
