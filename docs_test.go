package hibernate_test

import (
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are the texts for users, by name.
func documents(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	if err != nil || len(names) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	texts := map[string]string{}
	for _, name := range append(names, "README.md", "SECURITY.md") {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(b)
	}
	return texts
}

var (
	testFunc     = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	testName     = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w*`)
	scenarioName = regexp.MustCompile("`([a-z0-9]+(?:-[a-z0-9]+)+)`")
	code         = regexp.MustCompile("`[^`]*`")
	exported     = regexp.MustCompile(`\b[A-Z]\w*`)
	link         = regexp.MustCompile(`\]\(([^)#:]+)[^)]*\)`)
	block        = regexp.MustCompile("(?ms)^```.*?^```")
	goBlock      = regexp.MustCompile("(?ms)^```go\n(.*?)^```")
)

// TestDocumentsNameTestsThatExist, so that what they claim can be looked up.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	exists := map[string]bool{"TestNames": true} // of tests in general
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		b, err := os.ReadFile(name)
		for _, m := range testFunc.FindAllSubmatch(b, -1) {
			exists[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for doc, text := range documents(t) {
		for _, m := range testFunc.FindAllStringSubmatch(text, -1) {
			exists[m[1]] = true // its own
		}
		for _, name := range testName.FindAllString(text, -1) {
			if !exists[name] {
				t.Errorf("%s names %s, which is no test", doc, name)
			}
		}
	}
	for _, m := range scenarioName.FindAllStringSubmatch(documents(t)["docs/cloudflare.md"], -1) {
		_, err := os.Stat(filepath.Join("internal/conformance/testdata/scenarios", m[1]+".json"))
		if err != nil && m[1] != "names-like-this" {
			t.Errorf("docs/cloudflare.md names %s, which is no scenario", m[1])
		}
	}
}

// TestCloudflareTablesNameOurAPI: in the tables that lead from Cloudflare's names
// to ours, every identifier under "Here" is exported by the root package.
func TestCloudflareTablesNameOurAPI(t *testing.T) {
	ours := map[string]bool{}
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				ours[n.Name.Name] = true
				return false
			case *ast.TypeSpec:
				ours[n.Name.Name] = true
			case *ast.ValueSpec:
				for _, id := range n.Names {
					ours[id.Name] = true
				}
			case *ast.Field:
				for _, id := range n.Names {
					ours[id.Name] = true
				}
			}
			return true
		})
	}
	inTable, rows := false, 0
	for l := range strings.Lines(documents(t)["docs/cloudflare.md"]) {
		cells := strings.Split(l, " | ")
		switch {
		case strings.HasPrefix(l, "| Cloudflare | Here |"):
			inTable = true
		case !strings.HasPrefix(l, "| "):
			inTable = false
		case inTable && !strings.HasPrefix(l, "| ---"):
			rows++
			for _, c := range code.FindAllString(cells[1], -1) {
				for _, name := range exported.FindAllString(c, -1) {
					if !ours[name] {
						t.Errorf("%s: there is no %s", strings.TrimSpace(cells[0]), name)
					}
				}
			}
		}
	}
	if rows == 0 {
		t.Error("there is no such table")
	}
}

// TestDocumentsLinkToFilesThatExist.
func TestDocumentsLinkToFilesThatExist(t *testing.T) {
	for doc, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(block.ReplaceAllString(text, ""), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s: %v", doc, err)
			}
		}
	}
}

// TestProgramsInDocumentsCompile in a module of somebody else's: each Go block that
// is a whole file is formatted and passes vet.
func TestProgramsInDocumentsCompile(t *testing.T) {
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	blocks := 0
	for doc, text := range documents(t) {
		for i, m := range goBlock.FindAllStringSubmatch(text, -1) {
			if !strings.HasPrefix(m[1], "package ") {
				continue
			}
			blocks++
			if b, err := format.Source([]byte(m[1])); err != nil || string(b) != m[1] {
				t.Errorf("%s, Go block %d is not formatted: %v", doc, i+1, err)
			}
			write(fmt.Sprintf("%s/block%d/block.go", doc, i+1), m[1])
		}
	}
	if blocks == 0 {
		t.Fatal("no whole file among the Go blocks")
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		if name == "go.mod" {
			text = strings.Replace(text, "module "+module+"\n", "module documents\n", 1) +
				fmt.Sprintf("\nrequire %s v0.0.0\nreplace %[1]s => %q\n", module, root)
		}
		write(name, text)
	}
	vet := exec.Command("go", "vet", "-mod=mod", "./...")
	vet.Dir = dir
	vet.Env = append(os.Environ(), "GOWORK=off", "GOPROXY=off") // this module's dependencies are here
	if out, err := vet.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
