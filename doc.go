// Package diaspora logs events to a Diaspora Streams cluster, and reads them
// back, as the person that the program's user is at Globus.
package diaspora
