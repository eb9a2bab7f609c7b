package interop

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestRequestsThatAreNotOffered: the gateway closes the connection at a request that its answer
// to ApiVersions does not have. So code of the broker that only operators need is not reached:
// DescribeUserScramCredentials with null users made Apache Kafka 4.3.1 throw a
// NullPointerException, whoever sent it.
func TestRequestsThatAreNotOffered(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	offered := offeredVersions(signedInWire(t, cfg, f.Brokers()[0]))
	for key := range int16(kmsg.MaxKey + 1) {
		request := kmsg.RequestForKey(key)
		if request == nil || key == int16(kmsg.ApiVersions) { // of which any version is answered (KIP-511)
			continue
		}
		versions, ok := offered[key]
		if !ok {
			versions = [2]int16{request.MaxVersion() + 1, -1}
		}
		for version := range request.MaxVersion() + 1 {
			if versions[0] <= version && version <= versions[1] {
				continue
			}
			request.SetVersion(version)
			w := signedInWire(t, cfg, f.Brokers()[0])
			if answer, _, err := w.try(request); err == nil {
				t.Errorf("%s version %d, which is not offered, is answered: %+v", kmsg.NameForKey(key), version, answer)
			}
			w.Close()
		}
	}
	for _, key := range []kmsg.Key{kmsg.DescribeUserSCRAMCredentials, kmsg.AlterClientQuotas, kmsg.EndTxn, kmsg.ElectLeaders} {
		if _, ok := offered[key.Int16()]; ok {
			t.Errorf("%s is offered, and no client can be granted it", key.Name())
		}
	}
}

// offeredVersions are the requests that a connection offers, and their versions.
func offeredVersions(w rawConn) map[int16][2]int16 {
	w.t.Helper()
	all := map[int16][2]int16{}
	for _, r := range w.ask(kmsg.NewPtrApiVersionsRequest()).(*kmsg.ApiVersionsResponse).ApiKeys {
		all[r.ApiKey] = [2]int16{r.MinVersion, r.MaxVersion}
	}
	return all
}
