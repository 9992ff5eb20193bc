package hibernate_test

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEveryMutationIsCaught builds the library with each promise of package
// mutation broken in turn, and runs the tests that are to notice. It takes
// minutes, so HIBERNATE_MUTATIONS asks for it.
func TestEveryMutationIsCaught(t *testing.T) {
	if os.Getenv("HIBERNATE_MUTATIONS") == "" {
		t.Skip("set HIBERNATE_MUTATIONS to run it")
	}
	failed := regexp.MustCompile(`(?m)^--- FAIL: (\S+)|^(panic: .*)`)
	// run returns the tests of pkg that fail with a tag.
	run := func(t *testing.T, tag, pkg string) (names []string) {
		args := []string{"test", "-tags", tag, "-timeout", "150s", pkg}
		if pkg == "." {
			args = append(args, "-rapid.nofailfile") // what fails here is no history to keep
		}
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "HIBERNATE_MUTATIONS=")
		out, err := cmd.CombinedOutput()
		for _, m := range failed.FindAllSubmatch(out, -1) {
			names = append(names, string(m[1])+string(m[2]))
		}
		if err != nil && len(names) == 0 {
			t.Errorf("%s: %v, without a test:\n%.3000s", pkg, err, out)
		}
		return names
	}
	anyway := map[string][]string{} // what fails without a mutation
	for _, pkg := range []string{".", "./internal/store"} {
		anyway[pkg] = run(t, "", pkg)
		if len(anyway[pkg]) > 0 {
			t.Logf("%s: %q fail without a mutation", pkg, anyway[pkg])
		}
	}
	for _, m := range []struct {
		tag  string
		pkgs []string
	}{
		{"mutate_gate", []string{"."}},
		{"mutate_commit", []string{"."}},
		{"mutate_seq", []string{"./internal/store"}},
		{"mutate_alarm", []string{"."}},
		{"mutate_fatalf", []string{".", "./internal/store"}},
	} {
		t.Run(m.tag, func(t *testing.T) {
			for _, pkg := range m.pkgs {
				names := run(t, m.tag, pkg)
				names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(anyway[pkg], n) })
				if len(names) == 0 {
					t.Errorf("%s: no test notices", pkg)
				}
				t.Logf("%s: noticed by %s", pkg, strings.Join(names, ", "))
			}
		})
	}
}
