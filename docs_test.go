package hibernate_test

import (
	"flag"
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
	"slices"
	"strings"
	"testing"
	"unicode"
)

// documents are the texts for users and newcomers, by name.
func documents(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	if err != nil || len(names) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	examples, err := filepath.Glob("examples/*/README.md")
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	texts := map[string]string{}
	for _, name := range append(append(names, examples...), "README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "internal/README.md") {
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
	link         = regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
	heading      = regexp.MustCompile("(?m)^#+ +(.*)$")
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

// TestDocumentsLinkToFilesThatExist, and to headings that do.
func TestDocumentsLinkToFilesThatExist(t *testing.T) {
	for doc, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(block.ReplaceAllString(text, ""), -1) {
			target := filepath.Join(filepath.Dir(doc), m[1])
			if m[1] == "" {
				target = doc
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", doc, err)
				continue
			}
			if m[2] == "" {
				continue
			}
			b, err := os.ReadFile(target)
			if err != nil {
				t.Errorf("%s: %v", doc, err)
			}
			if !slices.Contains(anchors(string(b)), m[2]) {
				t.Errorf("%s links to %s#%s, and there is no such heading", doc, m[1], m[2])
			}
		}
	}
}

// anchors are what forges make of a document's headings.
func anchors(text string) (all []string) {
	for _, m := range heading.FindAllStringSubmatch(block.ReplaceAllString(text, ""), -1) {
		all = append(all, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(m[1])))
	}
	return all
}

// TestTheIndexNamesEveryDocument, and documents are found from the README.
func TestTheIndexNamesEveryDocument(t *testing.T) {
	texts := documents(t)
	for doc := range texts {
		name := strings.TrimPrefix(doc, "docs/")
		if name == doc || name == "README.md" {
			continue
		}
		for _, index := range []string{"README.md", "docs/README.md"} {
			rel, err := filepath.Rel(filepath.Dir(index), doc)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(texts[index], "]("+filepath.ToSlash(rel)+")") {
				t.Errorf("%s does not link to %s", index, doc)
			}
		}
	}
}

var writeFigures = flag.Bool("figures.write", false, "put the figures of docs/benchmarks.md into README.md")

// figures are the rows of docs/benchmarks.md that README.md shows.
var figures = []string{
	"user memory per idle hibernated connection, one object each",
	"the same, 100 connections per object",
	"17,000 more idle connections add",
	"CPU per echo, 64 connections, one in flight ÷ floor",
	"the same, 16 in flight",
	"CPU per delivery, broadcast to 1,000 ÷ floor",
	"cold echo p50 ÷ own warm, nothing read",
}

// TestFiguresAreThoseOfTheBenchmarks: README.md claims no number but those of docs/benchmarks.md, with what is said of the
// run. The flag figures.write puts them there.
func TestFiguresAreThoseOfTheBenchmarks(t *testing.T) {
	texts := documents(t)
	_, run, _ := strings.Cut(texts["docs/benchmarks.md"], "<!-- What follows is written by internal/bench/table. -->\n")
	run, table, ok := strings.Cut(run, "### What it is held to\n")
	if !ok {
		t.Fatal("docs/benchmarks.md has no table of what is held to")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n\n| | hibernate | best Go peer |\n| --- | ---: | ---: |\n", strings.TrimSpace(run))
	for _, f := range figures {
		cells := []string(nil)
		for l := range strings.Lines(table) {
			if c := strings.Split(l, " | "); len(c) == 6 && c[0] == "| "+f {
				cells = c
				break
			}
		}
		if cells == nil {
			t.Fatalf("docs/benchmarks.md has no row %q", f)
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", f, cells[3], cells[4])
	}
	b.WriteString("\n")
	const begin, end = "-figures.write -->\n", "<!-- End of the figures. -->"
	readme := texts["README.md"]
	i, j := strings.Index(readme, begin)+len(begin), strings.Index(readme, end)
	if i < len(begin) || j < i {
		t.Fatal("README.md has no place for the figures")
	}
	if readme[i:j] == b.String() {
		return
	}
	if !*writeFigures {
		t.Fatalf("README.md shows other figures than docs/benchmarks.md: go test . -run %s -figures.write", t.Name())
	}
	if err := os.WriteFile("README.md", []byte(readme[:i]+b.String()+readme[j:]), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestEveryExportedNameIsDocumented in the packages that users import. One comment may be for a group of constants,
// variables or fields.
func TestEveryExportedNameIsDocumented(t *testing.T) {
	for _, dir := range []string{".", "hibernatetest", "hibernateprom", "inspect"} {
		names, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			missing := func(n ast.Node, what string) {
				t.Errorf("%s: %s has no comment", fset.Position(n.Pos()), what)
			}
			for _, d := range f.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || receiverIsExported(d)) {
						missing(d, d.Name.Name)
					}
				case *ast.GenDecl:
					for _, s := range d.Specs {
						switch s := s.(type) {
						case *ast.TypeSpec:
							exported := s.Name.IsExported()
							if exported && s.Doc == nil && d.Doc == nil {
								missing(s, s.Name.Name)
							}
							if s, ok := s.Type.(*ast.StructType); ok && exported {
								undocumentedFields(fset, s.Fields.List, func(n *ast.Ident) { missing(n, n.Name) })
							}
						case *ast.ValueSpec:
							if s.Names[0].IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
								missing(s, s.Names[0].Name)
							}
						}
					}
				}
			}
		}
	}
}

func receiverIsExported(d *ast.FuncDecl) (ok bool) {
	ast.Inspect(d.Recv.List[0].Type, func(n ast.Node) bool {
		if id, is := n.(*ast.Ident); is && !ok {
			ok = id.IsExported()
			return false
		}
		return true
	})
	return ok
}

// undocumentedFields finds those without a comment of their own that stand in no run of lines with one.
func undocumentedFields(fset *token.FileSet, fields []*ast.Field, report func(*ast.Ident)) {
	for i := 0; i < len(fields); {
		j, documented := i, false // fields[i:j] stand together
		for ; j < len(fields); j++ {
			first := fields[j].Pos()
			if fields[j].Doc != nil {
				first = fields[j].Doc.Pos()
			}
			if j > i && fset.Position(first).Line > fset.Position(fields[j-1].End()).Line+1 {
				break
			}
			documented = documented || fields[j].Doc != nil || fields[j].Comment != nil
		}
		for _, f := range fields[i:j] {
			for _, n := range f.Names {
				if n.IsExported() && !documented {
					report(n)
				}
			}
		}
		i = j
	}
}

// TestProgramsInDocumentsCompile in a module of somebody else's: each Go block is a whole file, formatted, and passes vet.
// Those of one document that follow each other and are one package, a program and its test, are compiled together, and the tests pass.
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
	for doc, text := range documents(t) {
		var dir, pkg string
		for i, m := range goBlock.FindAllStringSubmatch(text, -1) {
			f, err := parser.ParseFile(token.NewFileSet(), "", m[1], parser.ImportsOnly)
			if err != nil {
				t.Errorf("%s, Go block %d is no whole file: %v", doc, i+1, err)
				continue
			}
			if b, err := format.Source([]byte(m[1])); err != nil || string(b) != m[1] {
				t.Errorf("%s, Go block %d is not formatted: %v", doc, i+1, err)
			}
			isTest := slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"testing"` })
			if isTest && f.Name.Name == pkg {
				write(dir+"/block_test.go", m[1])
				continue
			}
			dir, pkg = fmt.Sprintf("%s/block%d", doc, i+1), f.Name.Name
			name := "block.go"
			if isTest {
				name = "block_test.go"
			}
			write(dir+"/"+name, m[1])
		}
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
	for _, args := range [][]string{{"vet", "-mod=mod", "./..."}, {"test", "-mod=mod", "./README.md/...", "./docs/testing.md/..."}} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOPROXY=off") // this module's dependencies are here
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", args[0], err, out)
		}
	}
}
