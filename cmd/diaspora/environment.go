package main

import "github.com/spf13/cobra"

// environmentHelp lists the variables that commands read.
const environmentHelp = `Which fabric, and who signs in, if not by the profile that "diaspora login" has stored:
  DIASPORA_URL             address of the fabric's ACL endpoint
  DIASPORA_PROFILE         profile to use, as --profile
  DIASPORA_KEY_FILE        file with an access key and the address of its fabric, mode 0600; "diaspora
                           key create NAME --save-env FILE" writes one. Nothing else is needed
  DIASPORA_KEY_ID          access key to sign in with, without such a file; with DIASPORA_URL
  DIASPORA_KEY_SECRET      its secret
  DIASPORA_REFRESH         refresh token of a login; "diaspora token --refresh" prints it
  DIASPORA_CLIENT_ID       client of Globus that signs in as itself
  DIASPORA_CLIENT_SECRET   its secret

Of access key, client and refresh token, set one. An access key logs and reads events. What takes a
person, such as claiming topics and making keys, takes a login.

How to reach it:
  DIASPORA_BOOTSTRAP       bootstrap servers, as HOST:PORT,HOST:PORT, in place of those that the
                           fabric names
  DIASPORA_CA_FILE         PEM file with certificates to trust in addition to the system's
  GLOBUS_SDK_ENVIRONMENT, GLOBUS_SDK_SERVICE_URL_AUTH
                           another Globus Auth than Globus's own, as Globus's tools take it

Where things are kept:
  DIASPORA_CONFIG_DIR      profiles and tokens (default: diaspora in the user's configuration folder)
  DIASPORA_STATE_DIR       spools (default: ~/.local/state/diaspora)

"diaspora doctor" says which are set, and names those that nothing reads. The settings of "diaspora
serve" are variables, too; see its --help.`

// environmentTopic is "diaspora help environment".
func environmentTopic() *cobra.Command {
	return &cobra.Command{Use: "environment", Short: "the environment variables that commands read", Long: environmentHelp}
}
