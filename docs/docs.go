// Package docs has the pages of the documentation that "diaspora help" shows. It is for the command only.
package docs

import "embed"

// Pages has the pages, by the names of their files.
//
//go:embed guide.md share.md instruments.md batch.md clients.md doctor.md errors.md one-server.md operate.md tutorial-operator.md
var Pages embed.FS
