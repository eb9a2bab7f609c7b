package kfakedir

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

var update = flag.Bool("update", false, "let the library write testdata again")

// TestGolden reads directories that the engine of commit cb5a4b7 has written. It does not depend on
// the version of the library that the other tests use. testdata/<name> is a directory, and
// testdata/<name>.txt its contents, on which the engine and Read agreed when it was written.
func TestGolden(t *testing.T) {
	t.Parallel()
	if *update {
		writeGolden(t)
	}
	for name, warnings := range map[string][]string{
		"stopped": nil,
		"killed": {
			"topic events, partition 1: the batch at offset 3 had a checksum that did not match its timestamps: corrected",
			"topic events, partition 1: 0.dat ends with an incomplete batch of 70 bytes",
			"groups.log is damaged: 25 bytes between its entries were skipped",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join("testdata", name)
			if found, err := Found(dir); !found || err != nil {
				t.Errorf("Found = %v, %v", found, err)
			}
			data, got := read(t, dir)
			want := contents(strings.Split(strings.TrimSpace(string(testkit.ReadFile(t, dir+".txt"))), "\n"))
			want.compare(t, append(got, data.details()...))
			if len(data.Warnings) != len(warnings) {
				t.Errorf("warnings %q", data.Warnings)
			}
			for _, w := range warnings {
				wantWarning(t, data, w)
			}
		})
	}
}

// details returns what Read finds but an engine does not report.
func (d *Data) details() (c contents) {
	for _, g := range d.Groups {
		c.add("detail group %s: %s, %q, %q, %q, generation %d", g.ID, g.Kind, g.ProtocolType, g.Protocol, g.Assignor, g.Generation)
		for _, o := range g.Offsets {
			c.add("detail offset %s %s/%d: committed at %d", g.ID, o.Topic, o.Partition, o.Time.UnixMilli())
		}
	}
	for _, topic := range d.Topics {
		for _, p := range topic.Partitions {
			for _, producer := range p.Producers {
				c.add("detail producer %s/%d: %d, epoch %d, %v", topic.Name, p.Number, producer.ID, producer.Epoch, producer.Batches)
			}
			for _, s := range p.Segments {
				c.add("detail segment %s/%d: %d to %d, %d bytes", topic.Name, p.Number, s.Base, s.End, s.Bytes)
			}
		}
	}
	c.add("detail next producer ID %d", d.NextProducerID)
	return c
}

// writeGolden writes the directories of TestGolden.
func writeGolden(t *testing.T) {
	dir := t.TempDir()
	e := openEngine(t, dir)
	e.createTopic("events", 3, map[string]string{"segment.bytes": "400"})
	e.createTopic("doomed", 1, nil)
	e.createTopic("expired", 1, nil)
	producer := e.newClient(kgo.ProducerBatchCompression(kgo.ZstdCompression()))
	e.produceBy(producer, "events", 0, 6)
	e.produce("events", 1, 2, kgo.DisableIdempotentWrite())
	e.produce("expired", 0, 4)
	e.produce("doomed", 0, 1)
	e.commit("simple", "events", 0, 4)
	e.commit("simple", "expired", 0, 7)
	e.commit("simple", "doomed", 0, 1)
	e.consume("members", "events")
	e.createACL("User:ada", "events")
	e.must(e.cluster.DeleteTopic("doomed"))
	e.must(e.cluster.DeleteRecords("events", 0, 2))
	e.expire("expired")
	e.close()
	goldenFrom(t, "stopped", dir, nil)

	e = openEngine(t, dir)
	e.must(os.Remove(filepath.Join(dir, "seq_windows.json"))) // as package broker did
	e.produceBy(e.newClient(), "events", 0, 1)
	e.produceRaw("events", 1, seal(append(rawBatch(1, nil)[:attributesAt+1], append([]byte{8}, rawBatch(1, nil)[attributesAt+2:]...)...)))
	client := e.newClient(kgo.TransactionalID("tx"))
	e.must(client.BeginTransaction())
	e.produceBy(client, "events", 2, 1)
	e.must(client.EndTransaction(context.Background(), kgo.TryCommit))
	groups := filepath.Join(dir, "groups.log")
	torn := testkit.ReadFile(t, groups)
	writeFile(t, groups, append(torn, torn[:25]...))
	e.commit("simple", "events", 1, 3)
	goldenFrom(t, "killed", dir, func() {
		path := filepath.Join("testdata/killed/partitions/events-1/0.dat")
		segment := testkit.ReadFile(t, path)
		writeFile(t, path, append(segment, segment[:70]...))
	})
	e.close()
}

// goldenFrom copies a directory, and what the engine finds in it.
func goldenFrom(t *testing.T, name, from string, damage func()) {
	to := filepath.Join("testdata", name)
	testkit.Must(t, os.RemoveAll(to))
	testkit.Must(t, os.CopyFS(to, os.DirFS(from)))
	data, got := read(t, to)
	if damage == nil {
		e := openEngine(t, copyDir(t, from))
		served := e.served()
		e.close()
		// The engine forgets the end of a partition without records.
		served[slices.Index(served, "partition expired/0: 0 to 0")] = "partition expired/0: 7 to 7"
		served.compare(t, got)
	} else {
		damage()
		data, got = read(t, to)
	}
	lines := slices.Sorted(slices.Values(append(got, data.details()...)))
	writeFile(t, to+".txt", []byte(strings.Join(lines, "\n")+"\n"))
	fmt.Println("wrote", to)
}
