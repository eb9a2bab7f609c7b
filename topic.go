package diaspora

// MaxTopicLength bounds a topic's name, in bytes, as Kafka does.
const MaxTopicLength = 249

// ValidTopic returns nil if name can be claimed: letters, digits and underscores
// of ASCII, at most [MaxTopicLength], and the first is no underscore, for such
// names are the system's. Otherwise it returns a [*TopicError] with [ErrInvalid]
// that says what is wrong.
func ValidTopic(name string) error {
	if reason := topicFault(name); reason != "" {
		shown := name
		if len(shown) > 64 {
			shown = shown[:64] + "…"
		}
		return &TopicError{Op: "name", Topic: shown, Err: invalid("%s", reason)}
	}
	return nil
}

func topicFault(name string) string {
	switch {
	case name == "":
		return "a topic needs a name"
	case len(name) > MaxTopicLength:
		return "a topic's name has at most 249 characters"
	case name[0] == '_':
		return "a topic's name cannot start with an underscore"
	}
	for i := range len(name) {
		if !topicByte(name[i]) {
			return "a topic's name has only letters, digits and underscores"
		}
	}
	return ""
}

func topicByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
}

// kafkaTopic reports whether a cluster may have a topic of that name. Not all of
// them can be claimed; see [ValidTopic].
func kafkaTopic(name string) bool {
	if name == "" || len(name) > MaxTopicLength || name == "." || name == ".." {
		return false
	}
	for i := range len(name) {
		if c := name[i]; !topicByte(c) && c != '.' && c != '-' {
			return false
		}
	}
	return true
}
