package kafka

// What stands before the IDs of consumer groups at the broker. The gateway puts it there,
// so that each subject has groups of its own: "analysis" of the subject S is the group
// "user.S.analysis".
const (
	// UserGroups begins the groups of those who may read. Everybody may use groups of
	// that name, because the gateway lets nobody name another's.
	UserGroups = "user."
	// DeniedGroups begins the groups that access keys name which may not read. Nobody may
	// use them.
	DeniedGroups = "denied."
)
