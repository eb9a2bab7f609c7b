package terminal

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestWidth(t *testing.T) {
	for text, want := range map[string]int{
		"": 0, "weather": 7, "Wärme": 5, "Wa\u0308rme": 5, "気温": 4, "한국": 4, "ﾊﾝｶｸ": 4, "ＡＢ": 4, "☔": 2, "🌡": 1, "🌧️": 1, "🌍x": 3, "…": 1,
		"a\u200db": 2, "é\u0301": 1, "\U00020000": 2,
	} {
		if got := Width(text); got != want {
			t.Errorf("Width(%q) = %d, want %d", text, got, want)
		}
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		text        string
		columns     int
		end, middle string
	}{
		{"weather", 7, "weather", "weather"},
		{"weather", 6, "weath…", "wea…er"},
		{"weather", 5, "weat…", "we…er"},
		{"weather", 2, "w…", "w…"},
		{"weather", 1, "…", "…"},
		{"weather", 0, "", ""},
		{"weather", -5, "", ""},
		{"気温計測", 5, "気温…", "気…測"},
		{"気温計測", 4, "気…", "気…"},
		{"気温計測", 2, "…", "…"},
		{"a\u0308b\u0308c\u0308", 2, "a\u0308…", "a\u0308…"},
		{"a\u0308b\u0308c\u0308d", 3, "a\u0308b\u0308…", "a\u0308…d"},
		{"/data/scans/2026-11-28/scan_000123.h5", 20, "/data/scans/2026-11…", "/data/scan…000123.h5"},
	} {
		if got := Cut(c.text, c.columns); got != c.end {
			t.Errorf("Cut(%q, %d) = %q, want %q", c.text, c.columns, got, c.end)
		}
		if got := CutMiddle(c.text, c.columns); got != c.middle {
			t.Errorf("CutMiddle(%q, %d) = %q, want %q", c.text, c.columns, got, c.middle)
		}
	}
}

// FuzzCut checks that the result fits, is valid text, and is shortened only if necessary.
func FuzzCut(f *testing.F) {
	for _, seed := range []string{"", "weather", "気温計測", "a\u0308b", "🌍\u200d🌍", strings.Repeat("x", 300), "\u0300\u0300"} {
		f.Add(seed, 5)
	}
	f.Fuzz(func(t *testing.T, text string, columns int) {
		if !utf8.ValidString(text) {
			text = strings.ToValidUTF8(text, "?")
		}
		if len(text) > 10_000 {
			return
		}
		for _, cut := range []func(string, int) string{Cut, CutMiddle} {
			got := cut(text, columns)
			if Width(got) > max(columns, 0) || !utf8.ValidString(got) || Width(text) <= columns && got != text {
				t.Errorf("%q in %d columns is %q, of %d", text, columns, got, Width(got))
			}
		}
	})
}

// TestClip fails when untrusted text is not shortened, or is cut within a character.
func TestClip(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("x", 200), strings.Repeat("x", 201), strings.Repeat("ü€😀", 100), "x" + strings.Repeat("😀", 100)} {
		got := Clip(s, 200)
		if len(got) > 203 || !utf8.ValidString(got) || len(s) <= 200 && got != s {
			t.Errorf("Clip of %d bytes = %q", len(s), got)
		}
	}
}
