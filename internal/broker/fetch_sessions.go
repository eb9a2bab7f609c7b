package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// forgetFetchSessions makes fetch sessions (KIP-227) end with the process, as they
// do in Apache Kafka: clients are told that theirs is gone, and begin another.
//
// kfake takes up those of the last process again, but has not kept their topic
// IDs. A client that goes by topic IDs finds no topic of its own in the answers,
// and asks again at once, for ever; the Java consumer does. And it counts sessions
// from 1, so that after a crash a client could come upon another one's. The
// number to count from is in the same file.
func (b *Broker) forgetFetchSessions() error {
	file := filepath.Join(b.cfg.Dir, "session_state.json")
	state := map[string]json.RawMessage{}
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && (json.Unmarshal(data, &state) != nil || state == nil) {
		state = map[string]json.RawMessage{} // kfake does not read it either
	}
	last := 1 + rand.Int32N(1<<30)
	state["fetchSessions"] = fmt.Appendf(nil, `{"0":[{"id":%d,"e":1}]}`, last)
	if data, err = json.Marshal(state); err != nil {
		return err
	}
	return replaceFile(file, data)
}
