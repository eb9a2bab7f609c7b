package fabric

import "github.com/twmb/franz-go/pkg/kgo"

// AdminOpts are the options of a plain client whom no ACL binds, for tests that do
// to the cluster what an operator or retention does.
func (f *Fabric) AdminOpts() []kgo.Opt { return f.broker.AdminOpts() }
