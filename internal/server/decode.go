package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	typeJSON = "application/json"
	typeForm = "application/x-www-form-urlencoded"
)

// readBody reads the body of a request. Its media type must be one of accepted, and readBody
// returns it.
func readBody(x *exchange, accepted ...string) (body []byte, contentType string, err error) {
	r := x.r
	values := r.Header["Content-Type"]
	if len(values) == 1 {
		var params map[string]string
		contentType, params, err = mime.ParseMediaType(values[0])
		if charset, ok := params["charset"]; err != nil || ok && !strings.EqualFold(charset, "utf-8") {
			contentType = ""
		}
	}
	if !slices.Contains(accepted, contentType) {
		return nil, "", &refusal{
			status: http.StatusUnsupportedMediaType,
			detail: "the body must be " + strings.Join(accepted, " or ") + ", in UTF-8, and the Content-Type must say so",
		}
	}
	if len(r.Header["Content-Encoding"]) > 0 {
		return nil, "", &refusal{status: http.StatusUnsupportedMediaType, detail: "the body must not be compressed"}
	}
	// MaxBytesReader needs net/http's own writer, so that net/http closes the connection if the
	// body is not read to its end.
	body, err = io.ReadAll(http.MaxBytesReader(x.ResponseWriter, r.Body, maxBodyBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil, errors.As(err, &tooLarge):
		x.bodyRead = true
		x.keepConnOpen()
		return body, contentType, err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, contentType, &refusal{status: http.StatusRequestTimeout, detail: "the body took too long to arrive"}
	default:
		return nil, contentType, invalid("the body is incomplete or malformed")
	}
}

func invalid(format string, args ...any) error {
	return &refusal{status: http.StatusBadRequest, detail: fmt.Sprintf(format, args...)}
}

// fieldsOf returns the fields of the struct that into points to, by their JSON names.
func fieldsOf(into any) (names []string, fields map[string]reflect.Value) {
	v := reflect.ValueOf(into).Elem()
	fields = map[string]reflect.Value{}
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		names = append(names, name)
		fields[name] = v.Field(i)
	}
	return names, fields
}

// decodeJSON decodes one JSON object into a flat struct, to which into points. It is stricter than
// encoding/json: it refuses fields that are repeated, unknown, null or spelled in another case,
// data after the object, and invalid UTF-8. Its errors name existing fields only, and repeat
// nothing that the client sent.
func decodeJSON(body []byte, into any) error {
	names, fields := fieldsOf(into)
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return invalid("the body must be one JSON object")
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return invalid("the body is not valid JSON")
		}
		field, ok := fields[name]
		if !ok {
			return invalid("the body has an unknown field; the fields are %s", strings.Join(names, ", "))
		}
		if seen[name] {
			return invalid("the field %q is repeated", name)
		}
		seen[name] = true
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return invalid("the body is not valid JSON")
		}
		if string(raw) == "null" || json.Unmarshal(raw, field.Addr().Interface()) != nil {
			return invalid("the field %q must be %s", name, jsonKind(field))
		}
		if err := checkText(name, field); err != nil {
			return err
		}
		// The zero time would mean that there is none, and never what the client meant by it.
		if at, ok := field.Interface().(time.Time); ok && at.Year() < 1970 {
			return invalid("the field %q must be %s", name, jsonKind(field))
		}
	}
	if _, err := dec.Token(); err != nil {
		return invalid("the body is not valid JSON")
	}
	if _, err := dec.Token(); err != io.EOF {
		return invalid("the body has data after the JSON object")
	}
	return nil
}

func jsonKind(field reflect.Value) string {
	if field.Kind() == reflect.Pointer {
		field = reflect.New(field.Type().Elem()).Elem()
	}
	switch {
	case field.CanInt():
		return "a whole number"
	case field.Kind() == reflect.Bool:
		return "true or false"
	case field.Kind() == reflect.Slice:
		return "a list of strings"
	case field.Type() == reflect.TypeFor[time.Time]():
		return "a time such as 2026-11-23T17:04:05Z"
	}
	return "a string"
}

// decodeForm decodes an encoded form or query into a struct of strings, to which into points. It is
// as strict as decodeJSON, but removes space around values, because people paste them. With
// lenient, it ignores unknown fields.
func decodeForm(encoded string, into any, lenient bool) error {
	values, err := url.ParseQuery(encoded)
	if err != nil {
		return invalid("the form is not encoded correctly")
	}
	names, fields := fieldsOf(into)
	for name, value := range values {
		field, ok := fields[name]
		switch {
		case !ok && lenient:
			continue
		case !ok:
			return invalid("the form has an unknown field; the fields are %s", strings.Join(names, ", "))
		case len(value) > 1:
			return invalid("the field %q is repeated", name)
		}
		field.SetString(strings.TrimSpace(value[0]))
		if err := checkText(name, field); err != nil {
			return err
		}
	}
	return nil
}

// checkText refuses strings that are not valid UTF-8. It refuses U+FFFD too, because encoding/json
// puts it in place of invalid UTF-8 and of unpaired surrogates.
func checkText(name string, field reflect.Value) error {
	for _, text := range textsOf(field) {
		if !utf8.ValidString(text) || strings.ContainsRune(text, utf8.RuneError) {
			return invalid("the field %q is not valid UTF-8", name)
		}
	}
	return nil
}

// textsOf returns the text of a field, or the texts of a list.
func textsOf(field reflect.Value) (texts []string) {
	switch field.Kind() {
	case reflect.String:
		texts = append(texts, field.String())
	case reflect.Pointer:
		if !field.IsNil() {
			texts = textsOf(field.Elem())
		}
	case reflect.Slice:
		for i := range field.Len() {
			texts = append(texts, textsOf(field.Index(i))...)
		}
	}
	return texts
}
