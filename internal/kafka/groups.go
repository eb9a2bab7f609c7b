package kafka

// The prefixes of the IDs of consumer groups at the broker. The gateway adds them, so that each
// subject has groups of its own: the group "analysis" of the subject S is "user.S.analysis" at the
// broker.
const (
	// UserGroups is the prefix for callers that may read. An ACL lets every principal use all
	// groups with this prefix. That is safe because the gateway lets no client name a group of
	// another subject.
	UserGroups = "user."
	// DeniedGroups is the prefix for access keys that may not read. No principal may use a group
	// with it.
	DeniedGroups = "denied."
)
