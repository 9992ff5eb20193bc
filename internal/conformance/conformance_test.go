package conformance

import "testing"

// lawful are outcomes in which workerd breaks RFC 6455 and this library does
// not, by scenario and number of the step.
var lawful = map[string]map[int]any{
	// The reason in workerd's Close frame is so long that the frame has more than
	// the 125 bytes of a control frame (RFC 6455 section 5.5).
	"protocol-reserved-bits": {5: object{"got": []any{object{"close": object{"code": 1002.0, "reason": "*"}}}}},
}

// TestScenariosEndAsInWorkerd plays every scenario and compares each step with what
// workerd showed.
func TestScenariosEndAsInWorkerd(t *testing.T) {
	for _, sc := range loadScenarios(t) {
		t.Run(sc.Name, func(t *testing.T) {
			t.Parallel()
			outcomes, err := playFaked(t, sc)
			check(t, sc, outcomes, err)
		})
	}
}

// check compares the outcomes of a played scenario with what is expected.
func check(t *testing.T, sc *scenario, outcomes []any, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range sc.Steps {
		want := s.Expect
		if instead, ok := lawful[sc.Name][i+1]; ok {
			want = instead
		}
		for _, difference := range compare("", want, outcomes[i]) {
			t.Errorf("step %d (%s)%s", i+1, s.Do, difference)
		}
	}
}
