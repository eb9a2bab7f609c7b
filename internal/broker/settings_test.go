package broker

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// TestDefaultsAreValid: a topic can set each setting to its default value.
func TestDefaultsAreValid(t *testing.T) {
	all := make(map[string]string)
	for name, c := range topicConfigs {
		if c.hidden {
			continue
		}
		all[name] = c.value
		if shown, err := c.canonical(c.value); err != nil || shown != c.value {
			t.Errorf("%s: the default %q is shown as %q, %v", name, c.value, shown, err)
		}
	}
	if err := checkConfigs(all); err != nil {
		t.Errorf("checkConfigs(all defaults) = %v, want nil", err)
	}
	if got, want := settingsOf(all), settingsOf(nil); got != want {
		t.Errorf("settingsOf(all defaults) = %+v, want %+v", got, want)
	}
}

func TestCheckConfigs(t *testing.T) {
	for _, test := range []struct {
		name, value string
		want        string // part of the error; empty: no error
	}{
		{"retention.ms", "-1", ""},
		{"retention.ms", " 5 ", ""},
		{"retention.ms", "+5", ""},
		{"retention.ms", "-2", "at least -1"},
		{"retention.ms", "", "whole number of 64 bits"},
		{"retention.ms", "1.5", "whole number"},
		{"retention.ms", "9223372036854775808", "whole number"},
		{"retention.ms", strings.Repeat(" ", 40000) + "5", "longer than"},
		{"retention.bytes", "-7", ""},
		{"max.message.bytes", "0", ""},
		{"max.message.bytes", "4294967296", "whole number of 32 bits"},
		{"segment.bytes", "1048576", ""},
		{"segment.bytes", "1048575", "at least 1048576"},
		{"internal.segment.bytes", "1000", ""},
		{"cleanup.policy", "delete", ""},
		{"cleanup.policy", " delete , delete ", ""},
		{"cleanup.policy", "", ""},
		{"cleanup.policy", "compact", "does not support compaction"},
		{"cleanup.policy", "compact,delete", "does not support compaction"},
		{"cleanup.policy", "keep", "one of compact, delete"},
		{"cleanup.policy", "delete,", "one of compact, delete"},
		{"message.timestamp.type", "LogAppendTime", ""},
		{"message.timestamp.type", "CreateTime", `the only possible value is "LogAppendTime"`},
		{"message.timestamp.type", "logappendtime", "one of"},
		{"compression.type", "producer", ""},
		{"compression.type", "zstd", "compression of the producer"},
		{"compression.type", "brotli", "one of"},
		{"compression.gzip.level", "-1", ""},
		{"compression.gzip.level", "0", "at least 1"},
		{"compression.lz4.level", "18", "at most 17"},
		{"compression.zstd.level", "-131072", ""},
		{"flush.messages", "9223372036854775807", ""},
		{"flush.messages", "1", "for the whole broker"},
		{"flush.ms", "1000", "for the whole broker"},
		{"min.insync.replicas", "2", ""},
		{"min.insync.replicas", "0", "at least 1"},
		{"min.cleanable.dirty.ratio", "1e-1", ""},
		{"min.cleanable.dirty.ratio", "1.5", "from 0 to 1"},
		{"min.cleanable.dirty.ratio", "NaN", "from 0 to 1"},
		{"unclean.leader.election.enable", "TRUE", ""},
		{"unclean.leader.election.enable", "yes", "true or false"},
		{"remote.storage.enable", "false", ""},
		{"remote.storage.enable", "true", "no tiered storage"},
		{"leader.replication.throttled.replicas", "0:1 , 2:3", ""},
		{"leader.replication.throttled.replicas", "*", ""},
		{"leader.replication.throttled.replicas", "0:x", "partition:broker"},
		{"min.compaction.lag.ms", "9223372036854775807", ""},
		{"message.format.version", "3.0", "unknown topic setting"},
		{"", "", "unknown topic setting"},
	} {
		err := checkConfigs(map[string]string{test.name: test.value})
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("checkConfigs(%s=%.40q) = %v, want %q", test.name, test.value, err, test.want)
		}
	}
	err := checkConfigs(map[string]string{"min.compaction.lag.ms": "5", "max.compaction.lag.ms": "4"})
	if err == nil {
		t.Error("min.compaction.lag.ms above max.compaction.lag.ms = nil, want an error")
	}
}

func TestSettingsOf(t *testing.T) {
	standard := topicSettings{segmentBytes: 64 << 20, retention: 7 * 24 * time.Hour, retentionBytes: -1, maxMessageBytes: 1048588}
	with := func(f func(*topicSettings)) topicSettings {
		s := standard
		f(&s)
		return s
	}
	for _, test := range []struct {
		name    string
		configs map[string]string
		want    topicSettings
	}{
		{"none", nil, standard},
		{"retention", map[string]string{"retention.ms": " 1500 "}, with(func(s *topicSettings) { s.retention = 1500 * time.Millisecond })},
		{"for ever", map[string]string{"retention.ms": "-1"}, with(func(s *topicSettings) { s.retention = -1 })},
		{"longer than can be", map[string]string{"retention.ms": "9223372036854775807"}, with(func(s *topicSettings) { s.retention = time.Duration(math.MaxInt64).Truncate(time.Millisecond) })},
		{"at once", map[string]string{"retention.ms": "0"}, with(func(s *topicSettings) { s.retention = 0 })},
		{"sizes", map[string]string{"retention.bytes": "7", "segment.bytes": "2000000", "max.message.bytes": "9"},
			topicSettings{segmentBytes: 2000000, retention: standard.retention, retentionBytes: 7, maxMessageBytes: 9}},
		{"small segments", map[string]string{"segment.bytes": "2000000", "internal.segment.bytes": "1000"}, with(func(s *topicSettings) { s.segmentBytes = 1000 })},
		{"keep all", map[string]string{"cleanup.policy": "", "retention.ms": "5", "retention.bytes": "5"}, with(func(s *topicSettings) { s.retention = -1 })},
		// A value that an earlier engine allowed must not delete records.
		{"compacted", map[string]string{"cleanup.policy": "compact", "retention.ms": "5"}, with(func(s *topicSettings) { s.retention = -1 })},
		{"broken", map[string]string{"retention.ms": "a week", "retention.bytes": "", "segment.bytes": "3", "max.message.bytes": "-1"}, standard},
	} {
		if got := settingsOf(test.configs); got != test.want {
			t.Errorf("%s: settingsOf(%v) = %+v, want %+v", test.name, test.configs, got, test.want)
		}
	}
}

// TestValidConfigsAreShown: a valid value can be described, and setting the described value again
// changes nothing.
func TestValidConfigsAreShown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for name, c := range topicConfigs {
			value := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ ]?-?[0-9.e,:*a-z]{0,8}[ ]?`)).Draw(t, name)
			if checkConfigs(map[string]string{name: value}) != nil {
				continue
			}
			shown, err := c.canonical(value)
			if err != nil {
				t.Fatalf("%s=%q is valid, but canonical = %v", name, value, err)
			}
			if again, err := c.canonical(shown); err != nil || again != shown || checkConfigs(map[string]string{name: shown}) != nil {
				t.Fatalf("%s=%q is shown as %q, and that as %q, %v", name, value, shown, again, err)
			}
		}
	})
}

func TestJavaDouble(t *testing.T) {
	for _, test := range []struct {
		x    float64
		want string
	}{{0, "0.0"}, {1, "1.0"}, {0.5, "0.5"}, {0.001, "0.001"}, {0.0001, "1.0E-4"}, {0.00012345, "1.2345E-4"}, {1e-10, "1.0E-10"}} {
		if got := javaDouble(test.x); got != test.want {
			t.Errorf("javaDouble(%v) = %q, want %q", test.x, got, test.want)
		}
	}
}

func TestBrokerConfigs(t *testing.T) {
	for name, c := range brokerConfigs {
		if len(c.synonyms) > 0 && (c.synonyms[0].name != name || c.synonyms[0].source != c.source) {
			t.Errorf("%s: the first synonym is %+v, the source is %v", name, c.synonyms[0], c.source)
		}
	}
	for _, config := range describeBrokerConfigs() {
		if config.IsSensitive && (config.Value != nil || config.ConfigSynonyms[0].Value != nil) {
			t.Errorf("%s is told, and is a secret", config.Name)
		}
		if !config.ReadOnly {
			t.Errorf("%s is not read-only, but cannot be changed", config.Name)
		}
	}
	if got := brokerConfigs["message.max.bytes"]; got.kind != kmsg.ConfigTypeInt || *got.value != "1048588" {
		t.Errorf("message.max.bytes is %+v", got)
	}
}
