package aclclient

import "testing"

// TestTextFault checks which field is named if its text is malformed.
func TestTextFault(t *testing.T) {
	t.Parallel()
	type part struct {
		Owner string `json:"owner" form:"subject"`
		Key   string `json:"key,omitempty" form:"key"`
	}
	type answer struct {
		part
		Name   string   `json:"name" form:"topic"`
		Topics []string `json:"topics,omitempty" form:"topic"`
		Note   *string  `json:"note,omitempty"`
		Parts  []part   `json:"parts,omitempty"`
		Other  string   `json:"other,omitempty" form:"of no kind"`
		Number int      `json:"number"`
		hidden string
	}
	note := "a\nb"
	for what, tt := range map[string]struct {
		answer answer
		field  string // whose text is malformed
	}{
		"good":                       {answer: answer{Name: "weather", Topics: []string{"a"}, Parts: []part{{Owner: "ada"}}, hidden: "\n"}},
		"an empty text":              {answer{}, "name"},
		"an empty text in a slice":   {answer{Name: "weather", Topics: []string{"a", ""}}, "topics"},
		"a pointer":                  {answer{Name: "weather", Note: &note}, "note"},
		"a part":                     {answer{Name: "weather", Parts: []part{{Owner: "ada"}, {Owner: "a b"}}}, "parts.owner"},
		"an optional text of a part": {answer{Name: "weather", Parts: []part{{Key: "key-1"}}}, "parts.key"},
		"a form that does not exist": {answer{Name: "weather", Other: "x"}, "other"},
	} {
		want := ""
		if tt.field != "" {
			want = `its field "` + tt.field + `" is malformed`
		}
		if got := TextFault(&tt.answer); got != want {
			t.Errorf("%s: TextFault = %q, want %q", what, got, want)
		}
	}
}
