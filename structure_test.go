package hibernate_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/hibernate-go/hibernate"

// allowedImports is the architecture: what the library code of each package may import of this module.
// Calls go down by method; news comes up through an interface that the lower package declares.
// A package that is not listed may not exist, and an edge that nobody uses may not stay.
var allowedImports = map[string][]string{
	".":                  {"internal/accept", "internal/alarm", "internal/limit", "internal/poll", "internal/registry", "internal/seam", "internal/socket", "internal/store", "internal/wire"},
	"hibernateprom":      {"."},
	"inspect":            {"."},
	"internal/accept":    {"internal/alarm", "internal/limit", "internal/poll", "internal/wire"},
	"internal/registry":  {"internal/alarm", "internal/gate", "internal/limit", "internal/mutation", "internal/poll", "internal/socket", "internal/store", "internal/wire"},
	"internal/seam":      {"internal/registry", "internal/store"},
	"internal/socket":    {"internal/alarm", "internal/limit", "internal/poll", "internal/wire"},
	"internal/store":     {"internal/mutation"},
	"hibernatetest":      {".", "internal/alarm", "internal/registry", "internal/seam", "internal/socket", "internal/store", "internal/storetest"},
	"internal/alarm":     {},
	"internal/gate":      {},
	"internal/leak":      {}, // for tests
	"internal/limit":     {},
	"internal/mutation":  {},
	"internal/poll":      {},
	"internal/storetest": {}, // for tests
	"internal/wire":      {},
}

// users are the programs and suites in this module. They see the library as anybody does: its public packages, and each other.
var users = []string{"examples/", "internal/bench/", "internal/conformance/"}

func isUser(dir string) bool {
	return slices.ContainsFunc(users, func(prefix string) bool { return strings.HasPrefix(dir+"/", prefix) })
}

// onlyImporters names who may import a dependency. The rest of the library does not know of it.
var onlyImporters = map[string][]string{
	"github.com/cockroachdb/pebble/v2":    {"internal/store", "internal/storetest"},
	"github.com/gobwas/ws":                {"hibernatetest", "internal/wire"},
	"github.com/prometheus/client_golang": {"hibernateprom"},
	"github.com/fxamacker/cbor/v2":        {"."},
	"github.com/klauspost/compress":       {"internal/wire"},
	"golang.org/x/sys":                    {"internal/poll"},
}

// neededImports must each be used by library code, not by tests alone.
var neededImports = []string{
	"github.com/cockroachdb/pebble/v2",
	"github.com/gobwas/ws",
	"github.com/klauspost/compress",
	"golang.org/x/sync",
}

// A sourceFile is one Go file, for whatever system it is.
type sourceFile struct {
	path    string // slash-separated, below the repository's root
	dir     string // its package
	pkg     string // the package clause
	test    bool
	doc     string // package doc
	imports []string
}

func sourceFiles(t *testing.T) (files []sourceFile) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			_, err := os.Stat(filepath.Join(name, "go.mod"))
			if name != "." && (base == "testdata" || strings.HasPrefix(base, ".") || err == nil) {
				return fs.SkipDir // a module of its own answers for itself
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		s := sourceFile{
			path: filepath.ToSlash(name), dir: path.Dir(filepath.ToSlash(name)), pkg: f.Name.Name,
			test: strings.HasSuffix(base, "_test.go"), doc: packageDoc(f),
		}
		for _, i := range f.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, p)
		}
		files = append(files, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// packageDoc returns the doc comment without directives such as go:build.
func packageDoc(f *ast.File) string {
	if f.Doc == nil {
		return ""
	}
	return strings.TrimSpace(f.Doc.Text())
}

// within reports whether an import path is the module or a package of it.
func within(importPath, mod string) bool {
	return importPath == mod || strings.HasPrefix(importPath, mod+"/")
}

func TestImportsKeepToTheLayers(t *testing.T) {
	used := map[string]map[string]bool{}
	for _, f := range sourceFiles(t) {
		allowed, known := allowedImports[f.dir]
		if !known && !isUser(f.dir) {
			t.Errorf("%s: package %s is not in the list of packages", f.path, f.dir)
			continue
		}
		if used[f.dir] == nil {
			used[f.dir] = map[string]bool{}
		}
		if f.test {
			continue
		}
		for _, p := range f.imports {
			if !within(p, module) {
				continue
			}
			rel := "."
			if p != module {
				rel = strings.TrimPrefix(p, module+"/")
			}
			used[f.dir][rel] = true
			if !slices.Contains(allowed, rel) && !(isUser(f.dir) && (isUser(rel) || !strings.HasPrefix(rel, "internal/"))) {
				t.Errorf("%s imports %s, which %s may not", f.path, rel, f.dir)
			}
		}
	}
	for dir, allowed := range allowedImports {
		if used[dir] == nil {
			t.Errorf("package %s is in the list and does not exist", dir)
		}
		for _, p := range allowed {
			if !used[dir][p] {
				t.Errorf("%s may import %s and does not: take it off the list", dir, p)
			}
		}
	}
}

func TestDependenciesStayWhereTheyBelong(t *testing.T) {
	used := map[string]bool{}
	for _, f := range sourceFiles(t) {
		if f.test || isUser(f.dir) {
			continue
		}
		for _, p := range f.imports {
			for _, dep := range neededImports {
				if within(p, dep) {
					used[dep] = true
				}
			}
			for dep, dirs := range onlyImporters {
				if within(p, dep) && !slices.Contains(dirs, f.dir) {
					t.Errorf("%s imports %s, which only %v may", f.path, p, dirs)
				}
			}
		}
	}
	for _, dep := range neededImports {
		if !used[dep] {
			t.Errorf("no library code imports %s", dep)
		}
	}
}

func TestEachPackageExplainsItselfOnce(t *testing.T) {
	docs := map[string][]string{}
	dirs := map[string]bool{}
	for _, f := range sourceFiles(t) {
		if f.pkg == "utils" || f.pkg == "util" || f.pkg == "common" || f.pkg == "helpers" {
			t.Errorf("%s: package %s is named for nothing it owns", f.path, f.pkg)
		}
		if f.test {
			continue
		}
		dirs[f.dir] = true
		if f.doc == "" {
			continue
		}
		docs[f.dir] = append(docs[f.dir], f.path)
		if f.pkg != "main" && !strings.HasPrefix(f.doc, "Package "+f.pkg+" ") {
			t.Errorf("%s: the package doc should start with %q", f.path, "Package "+f.pkg)
		}
	}
	for dir := range dirs {
		if len(docs[dir]) != 1 {
			t.Errorf("package %s has %d package docs %v, want one", dir, len(docs[dir]), docs[dir])
		}
	}
}

// TestEveryTestBinaryLooksForLeaks: goroutines and descriptors, at its end.
func TestEveryTestBinaryLooksForLeaks(t *testing.T) {
	looks := map[string]bool{}
	for _, f := range sourceFiles(t) {
		if !f.test {
			continue
		}
		b, err := os.ReadFile(f.path)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		ends := strings.Contains(text, "leak.Main(") || f.dir == "internal/leak" && strings.Contains(text, "{ Main(m) }")
		looks[f.dir] = looks[f.dir] || ends && strings.Contains(text, "func TestMain(m *testing.M)")
	}
	for dir, ok := range looks {
		if !ok {
			t.Errorf("the tests of %s do not end in leak.Main", dir)
		}
	}
}
