package main

// environmentHelp is "diaspora help environment". It lists the variables that commands read.
const environmentHelp = `These variables select the fabric and the identity. DIASPORA_PROFILE selects a profile that
"diaspora login" has stored; the others are used instead of a profile:
  DIASPORA_URL             address of the fabric's ACL endpoint
  DIASPORA_PROFILE         name of the profile to use, as with --profile
  DIASPORA_KEY_FILE        file with an access key and the address of its fabric, written by
                           "diaspora key create NAME --save-env FILE"; mode 0600; no other variable
                           is needed
  DIASPORA_KEY_ID          ID of an access key, if there is no such file; needs DIASPORA_URL
  DIASPORA_KEY_SECRET      secret of this access key
  DIASPORA_REFRESH         refresh token of a login; "diaspora token --refresh" prints it
  DIASPORA_CLIENT_ID       client ID of a service account at Globus
  DIASPORA_CLIENT_SECRET   secret of this client

Set only one of these: an access key, a client, or a refresh token. With an access key, you can log
and read events and use consumer groups. To manage topics and keys, you need a login or a service
account.

These variables say how to reach the fabric and Globus:
  DIASPORA_BOOTSTRAP       bootstrap servers, as HOST:PORT,HOST:PORT, instead of those that the
                           fabric announces
  DIASPORA_CA_FILE         PEM file with certificates to trust in addition to the system's
  GLOBUS_SDK_ENVIRONMENT, GLOBUS_SDK_SERVICE_URL_AUTH
                           a Globus Auth server other than the public one; Globus's own tools read
                           the same variables

These variables say where files are kept:
  DIASPORA_CONFIG_DIR      profiles and tokens (default: diaspora in the user's configuration folder)
  DIASPORA_STATE_DIR       spools, and the journals of produce --watch (default: ~/.local/state/diaspora)

"diaspora doctor" shows which variables are set, and reports those that have no effect. Each setting
of "diaspora serve" can also be a variable; see "diaspora serve --help".`
