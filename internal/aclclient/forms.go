package aclclient

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// forms are the forms of the texts in an answer. A field of an answer's type names the form of its text,
// or of each text in its slice, in the tag "form". Without a tag, the text must be a line.
var forms = map[string]func(string) bool{
	"":             IsLine,
	"short line":   func(s string) bool { return len(s) <= 1000 && IsLine(s) },
	"subject":      IsSubject,
	"group":        IsSubject, // the ID of a Globus group
	"topic":        kafka.IsTopic,
	"key":          accesskey.IsID,
	"key name":     func(s string) bool { return s != "" && len(s) <= 64 && IsWord(s) },
	"secret":       func(s string) bool { return accesskey.IsSecret(globus.Secret(s)) },
	"certificates": func(s string) bool { return len(s) <= trust.MaxCABytes }, // their lines are parsed before use
}

// TextFault says which text in a decoded answer does not have the form of its field, or returns "". A
// field that JSON omits if it is empty may be empty. The result does not show the text.
func TextFault(answer any) string { return textFault(reflect.ValueOf(answer), "", "", false) }

// textFault checks the texts in v, which is the value of a field, or a part of one. field is its name in
// the answer.
func textFault(v reflect.Value, field, form string, optional bool) string {
	switch v.Kind() {
	case reflect.String:
		if valid, known := forms[form]; optional && v.Len() == 0 || known && valid(v.String()) {
			return ""
		}
		return fmt.Sprintf("its field %q is malformed", field)
	case reflect.Pointer:
		return textFault(v.Elem(), field, form, optional) // the zero Value of a nil pointer has no text
	case reflect.Slice:
		for i := range v.Len() {
			if fault := textFault(v.Index(i), field, form, false); fault != "" {
				return fault
			}
		}
	case reflect.Struct:
		for f, value := range v.Fields() {
			if !f.IsExported() {
				continue
			}
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			path := strings.Trim(field+"."+name, ".")
			if fault := textFault(value, path, f.Tag.Get("form"), strings.Contains(options, "omit")); fault != "" {
				return fault
			}
		}
	}
	return ""
}
