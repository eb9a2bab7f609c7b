package accesskey

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unicode"
)

const maxFileBytes = 64 << 10

// variables are the variables that a key file may set, in the order in which Format writes them.
var variables = []string{"DIASPORA_URL", "DIASPORA_BOOTSTRAP", "DIASPORA_CA_FILE", IDVariable, SecretVariable}

// File is a key file that has been read. The zero value means that there is none.
type File struct {
	Path     string
	Variable string // the variable that provides a key, even if there is no file; "" if none does
	vars     map[string]string
}

// FileError says why a key file, or a key in variables, cannot be used, and how to fix that.
type FileError struct {
	Reason, Hint string
	Err          error // the error of the system, or nil
}

func (e *FileError) Error() string { return e.Reason + "; " + e.Hint }
func (e *FileError) Unwrap() error { return e.Err }

const another = `make one with "diaspora key create NAME --save-env FILE" where you are logged in`

// Variable returns the variable that provides the credential to sign in with, or "" if that is the
// login of a profile.
func Variable(getenv func(string) string) string {
	for _, name := range []string{FileVariable, IDVariable, SecretVariable, "DIASPORA_CLIENT_ID", "DIASPORA_REFRESH"} {
		if getenv(name) != "" {
			return name
		}
	}
	return ""
}

// FromEnv finds the access key that the environment provides, and reads the file that
// DIASPORA_KEY_FILE names. It fails if the key is malformed, if it is in the variables of another
// kind of credential, or if the environment also sets another credential: events could be logged
// under another identity than the user meant. Errors are [*FileError].
func FromEnv(getenv func(string) string) (File, error) {
	fail := func(hint, format string, args ...any) (File, error) {
		return File{}, &FileError{Reason: fmt.Sprintf(format, args...), Hint: hint}
	}
	if wrong := MisplacedFault(getenv("DIASPORA_CLIENT_ID"), getenv("DIASPORA_CLIENT_SECRET")); wrong != "" {
		return fail("set DIASPORA_KEY_ID and DIASPORA_KEY_SECRET instead", "%s", wrong)
	}
	f := File{Variable: Variable(getenv)}
	switch f.Variable {
	case FileVariable:
		read, err := Read(getenv(FileVariable))
		if err != nil {
			return File{}, err
		}
		f.Path, f.vars = read.Path, read.vars
		for _, name := range []string{IDVariable, SecretVariable} {
			if set := getenv(name); set != "" && set != f.vars[name] {
				return fail("unset one of them", "%s is set, and %s names a file with another key", name, FileVariable)
			}
		}
	case IDVariable, SecretVariable:
	default:
		return File{}, nil
	}
	for _, other := range []string{"DIASPORA_CLIENT_ID", "DIASPORA_REFRESH"} {
		if getenv(other) != "" {
			return fail("unset one of them", "%s and %s both say who signs in", f.Variable, other)
		}
	}
	get := f.Getenv(getenv)
	if wrong := Fault(get(IDVariable), get(SecretVariable)); wrong != "" {
		return fail(another, "%s", wrong)
	}
	return f, nil
}

// Get returns the value of a variable in the file, or "".
func (f File) Get(name string) string { return f.vars[name] }

// Getenv returns a function that looks a variable up with getenv, and then in the file.
func (f File) Getenv(getenv func(string) string) func(string) string {
	if f.Path == "" {
		return getenv
	}
	return func(name string) string {
		if value := getenv(name); value != "" {
			return value
		}
		return f.vars[name]
	}
}

// Read reads a key file. It refuses a file that other users can read, because they would have the
// key. It also refuses a file that belongs neither to this user nor to root: its owner could change
// it so that events are sent to another fabric. Errors are [*FileError]. They show nothing of the
// file's content. They and the result have the absolute path, because a message of a service may be read in another
// folder than the one where the service runs.
func Read(path string) (File, error) {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	fail := func(err error, hint, format string, args ...any) (File, error) {
		return File{}, &FileError{Reason: fmt.Sprintf("%s: key file %s: ", FileVariable, path) + fmt.Sprintf(format, args...), Hint: hint, Err: err}
	}
	info, err := os.Stat(path) // before opening, because opening a device may have side effects, or block
	if err == nil && !info.Mode().IsRegular() {
		return fail(nil, another, "it is not a file")
	}
	var file *os.File
	if err == nil {
		file, err = os.Open(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail(err, "check the path, or "+another, "it does not exist")
	case errors.Is(err, fs.ErrPermission):
		return fail(err, "have it belong to the user that runs this program, or make a key file of your own", "this user may not read it%s", ofUser(info))
	case err != nil:
		return fail(err, another, "%v", err)
	}
	defer file.Close()
	if info, err = file.Stat(); err != nil {
		return fail(err, another, "%v", err)
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return fail(nil, "chmod 600 "+path+", and if others may have read it, make another key and revoke this one", "others may read or change it (mode %04o)", mode)
	}
	if owner, known := ownerOf(info); known && !mayOwn(owner, os.Geteuid()) {
		return fail(nil, "make a key file of your own", "it belongs to another user (%d)", owner)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	switch {
	case err != nil:
		return fail(err, another, "%v", err)
	case len(data) > maxFileBytes:
		return fail(nil, another, "it has more than %d bytes", maxFileBytes)
	}
	vars, wrong := parse(string(data))
	if wrong != "" {
		return fail(nil, another, "%s", wrong)
	}
	return File{Path: path, vars: vars}, nil
}

// mayOwn reports whether a user may trust a file of this owner.
func mayOwn(owner, user int) bool { return owner == user || owner == 0 }

// ofUser describes the owner of a file for an error, if it is another user.
func ofUser(info fs.FileInfo) string {
	if info == nil {
		return ""
	}
	if owner, known := ownerOf(info); known && owner != os.Geteuid() {
		return fmt.Sprintf("; it belongs to another user (%d)", owner)
	}
	return ""
}

// parse parses the text of a file, or returns what is wrong with it.
func parse(text string) (vars map[string]string, wrong string) {
	vars = map[string]string{}
	for _, other := range []struct{ mark, what string }{
		{"sasl.jaas.config", "for Java"}, {"sasl.username", "for kcat"}, {"{", "in JSON"},
	} {
		if strings.HasPrefix(strings.TrimSpace(text), other.mark) || other.mark != "{" && strings.Contains(text, other.mark) {
			return nil, "it is a file " + other.what + ", and not of the kind that this program reads"
		}
	}
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		name = strings.TrimSpace(name)
		if ok {
			value, ok = unquote(strings.TrimSpace(value))
		}
		switch {
		case !ok:
			return nil, fmt.Sprintf("line %d is not NAME=VALUE", number)
		case !strings.HasPrefix(name, "DIASPORA_"):
			continue // a variable of another program
		case !slices.Contains(variables, name):
			return nil, fmt.Sprintf("line %d sets something that does not belong into it; it may set %s", number, strings.Join(variables, ", "))
		case vars[name] != "":
			return nil, fmt.Sprintf("%s is in it twice", name)
		}
		vars[name] = value
	}
	if vars[IDVariable] == "" && vars[SecretVariable] == "" {
		return nil, "there is no key in it"
	}
	return vars, Fault(vars[IDVariable], vars[SecretVariable])
}

// unquote removes the quotation marks around a value. It reports false if the value has characters
// that a shell would interpret.
func unquote(value string) (string, bool) {
	if len(value) >= 2 && (value[0] == '\'' || value[0] == '"') && value[len(value)-1] == value[0] {
		value = value[1 : len(value)-1]
	}
	return value, !strings.ContainsAny(value, special)
}

// Format returns the text of a file that sets the variables for which get returns a value. This
// package, a shell, systemd and container runtimes all read the same values from it. Format fails
// for a value for which that is not possible.
func Format(comment string, get func(name string) string) (string, error) {
	var b strings.Builder
	for line := range strings.SplitSeq(comment, "\n") {
		fmt.Fprintf(&b, "# %s\n", line)
	}
	for _, name := range variables {
		value := get(name)
		if value == "" {
			continue
		}
		if strings.ContainsFunc(value, func(r rune) bool { return !plain(r) }) {
			if value = "'" + value + "'"; strings.ContainsFunc(value[1:len(value)-1], func(r rune) bool { return !quotable(r) }) {
				return "", fmt.Errorf("%s has characters that a shell would interpret", name)
			}
		}
		fmt.Fprintf(&b, "%s=%s\n", name, value)
	}
	return b.String(), nil
}

// quotable reports whether a character may stand between quotation marks.
func quotable(r rune) bool { return unicode.IsPrint(r) && !strings.ContainsRune(special, r) }

// special are the characters that no value may have, because a shell interprets them.
const special = "'\"`\\$"

// plain reports whether a shell takes a character literally, wherever it stands in a value.
func plain(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_./:,@%+=[]", r)
}
