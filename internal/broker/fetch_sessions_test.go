package broker

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fetch asks for the topic's records from the start, in a session or, with none,
// in a new one.
func fetch(t *testing.T, client *kgo.Client, session, epoch int32) *kmsg.FetchResponse {
	t.Helper()
	topics, err := kadm.NewClient(client).ListTopics(t.Context(), "weather")
	if err != nil {
		t.Fatal(err)
	}
	request := kmsg.NewPtrFetchRequest()
	request.SessionID, request.SessionEpoch, request.MaxBytes = session, epoch, 1<<20
	if epoch == 0 {
		partition := kmsg.NewFetchRequestTopicPartition()
		partition.PartitionMaxBytes = 1 << 20
		topic := kmsg.NewFetchRequestTopic()
		topic.TopicID = topics["weather"].ID
		topic.Partitions = append(topic.Partitions, partition)
		request.Topics = append(request.Topics, topic)
	}
	response, err := client.Broker(0).Request(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	return response.(*kmsg.FetchResponse)
}

// TestFetchSessionsEndWithTheBroker, be it by Close or by a crash. No later client
// gets the number of an earlier one.
func TestFetchSessionsEndWithTheBroker(t *testing.T) {
	dir, left := t.TempDir(), t.TempDir()
	b := open(t, Config{Dir: dir})
	client := b.admin(t)
	makeTopic(t, client, "weather")
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("rain")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	first := fetch(t, client, 0, 0)
	if first.ErrorCode != 0 || first.SessionID == 0 || len(first.Topics) != 1 {
		t.Fatalf("the first fetch: %+v", first)
	}
	if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	client.Close()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for how, dir := range map[string]string{"Close": dir, "a crash": left} {
		client := open(t, Config{Dir: dir}).admin(t)
		for range 3 {
			if id := fetch(t, client, 0, 0).SessionID; id == first.SessionID {
				t.Errorf("after %s a session has the number %d again", how, id)
			}
		}
		if err := kerr.ErrorForCode(fetch(t, client, first.SessionID, 1).ErrorCode); err != kerr.FetchSessionIDNotFound {
			t.Errorf("a fetch in the old session after %s: %v, want %v", how, err, kerr.FetchSessionIDNotFound)
		}
	}
}

// TestSessionStateIsKept: the members of groups, which are in the same file, stay.
func TestSessionStateIsKept(t *testing.T) {
	for name, state := range map[string]string{
		"":                 "",
		"with sessions":    `{"shutdownAt":"2026-01-02T03:04:05Z","classicGroups":{"g":{"leader":"x"}},"fetchSessions":{"0":[{"id":5,"e":30}]}}`,
		"without sessions": `{"shutdownAt":"2026-01-02T03:04:05Z","classicGroups":{"g":{"leader":"x"}}}`,
		"damaged":          `{"shutdownAt":`,
		"null":             `null`,
	} {
		b := &Broker{cfg: Config{Dir: t.TempDir()}}
		file := filepath.Join(b.cfg.Dir, "session_state.json")
		if name != "" {
			if err := os.WriteFile(file, []byte(state), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.forgetFetchSessions(); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var got, before map[string]any
		json.Unmarshal([]byte(state), &before)
		if err := json.Unmarshal(data, &got); err != nil {
			t.Errorf("%q: the file is %s: %v", name, data, err)
		}
		for key, value := range before {
			if key != "fetchSessions" && !equalJSON(value, got[key]) {
				t.Errorf("%q: %s is %v, want %v", name, key, got[key], value)
			}
		}
		if sessions, _ := json.Marshal(got["fetchSessions"]); len(sessions) < 10 || string(sessions) == `{"0":[{"e":30,"id":5}]}` {
			t.Errorf("%q: fetchSessions is %s", name, sessions)
		}
	}
}

func equalJSON(a, b any) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}
