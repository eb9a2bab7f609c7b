package doctor

import "testing"

func TestNear(t *testing.T) {
	names := []string{"alarms", "weather", "weather_2", "x1"}
	for name, want := range map[string]string{
		"wether": "weather", "weahter": "weather", "Weather": "weather", "weathers": "weather", "weather_3": "weather_2",
		"alarm": "alarms", "x2": "x1", "snow": "", "w": "", "": "",
	} {
		if got := Near(name, names); got != want {
			t.Errorf("Near(%q) = %q, want %q", name, got, want)
		}
	}
}
