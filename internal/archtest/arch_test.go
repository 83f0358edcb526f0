package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/Diarkis/diarkis"

// floors maps a folder to its floor. The longest matching prefix wins; a package
// imports lower floors only, and the parts in its own folder. Folders named in beside are held to rules of their own.
var floors = map[string]int{
	"internal/id": 0, "internal/wire": 0, "internal/status": 0, "internal/config": 0, "internal/telemetry": 0, "configs": -1,
	"internal/shortage": 0,
	"internal/guard":    1, "internal/listener": 1, "internal/mars": 1, "internal/path": 1, "internal/reliable": 1, "internal/secure": 1,
	"internal/transport": 2, "internal/mesh": 2, "internal/mars/marsnode": 2, "internal/mars/marstest": 2, "internal/cloudaddr": 2, "internal/rundir": 2,
	"client":         2,
	"internal/users": 3, "internal/router": 3, "internal/mars/marstest/marssim": 3,
	"internal/modules": 4,
	"internal/httpapi": 5, "internal/healthcheck": 5, "internal/bot": 5,
	"internal/lifecycle": 6,
	"cmd/diarkisd":       8,
}

// clientMayImport lists what the client library may use of the project: it is
// linked into games, so nothing of the server comes along.
var clientMayImport = []string{"internal/id", "internal/wire", "internal/status", "internal/reliable", "internal/secure"}

// pure lists the packages that take time and randomness as arguments.
var pure = []string{"internal/id", "internal/wire", "internal/status", "internal/mars", "internal/path", "internal/reliable", "internal/secure", "internal/users/exchange"}

// impureImports can't be used by a pure package: they open sockets or roll dice.
var impureImports = []string{"net", "net/http", "os", "math/rand", "math/rand/v2", "crypto/rand", "syscall", "golang.org/x/sys/unix"}

// impureCalls read a clock or start a timer.
var impureCalls = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}

type file struct {
	dir  string // relative to the module root, slash separated
	name string
	ast  *ast.File
	fset *token.FileSet
}

func (f file) at(p token.Pos) string { return f.fset.Position(p).String() }

func (f file) imports() []string {
	var out []string
	for _, im := range f.ast.Imports {
		p, err := strconv.Unquote(im.Path.Value)
		if err == nil {
			out = append(out, p)
		}
	}
	return out
}

// sources parses every Go file of the module but tests, which may import as they please.
func sources(t *testing.T) []file {
	t.Helper()
	root := filepath.Join("..", "..")
	var out []file
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || rel == "bench" || rel == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		out = append(out, file{path.Dir(rel), path.Base(rel), f, fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 10 {
		t.Fatalf("found %d source files: the walk is broken", len(out))
	}
	return out
}

// floorOf returns the floor of a folder, and false when it has none.
func floorOf(dir string) (int, bool) {
	for d := dir; d != "." && d != "/"; d = path.Dir(d) {
		if n, ok := floors[d]; ok {
			return n, true
		}
	}
	return 0, false
}

func TestImportsPointDown(t *testing.T) {
	for _, f := range sources(t) {
		from, ok := floorOf(f.dir)
		if !ok {
			if strings.HasPrefix(f.dir, "e2e") || strings.HasPrefix(f.dir, "internal/archtest") {
				continue
			}
			t.Errorf("%s/%s: folder has no floor: add it to floors", f.dir, f.name)
			continue
		}
		for _, im := range f.imports() {
			dir, ours := strings.CutPrefix(im, module+"/")
			if !ours {
				continue
			}
			to, ok := floorOf(dir)
			if !ok || to > from || to == from && !strings.HasPrefix(dir, f.dir+"/") {
				t.Errorf("%s/%s (floor %d) imports %s (floor %d): imports only point down", f.dir, f.name, from, dir, to)
			}
			if strings.HasPrefix(f.dir, "client") && !slices.Contains(clientMayImport, dir) {
				t.Errorf("%s/%s imports %s: the client library may use %v only", f.dir, f.name, dir, clientMayImport)
			}
		}
	}
}

func isPure(dir string) bool { return slices.Contains(pure, dir) }

func TestLowestFloorsArePure(t *testing.T) {
	for _, f := range sources(t) {
		if !isPure(f.dir) {
			continue
		}
		for _, im := range f.imports() {
			if slices.Contains(impureImports, im) {
				t.Errorf("%s/%s imports %s: time, randomness and I/O come in as arguments here", f.dir, f.name, im)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: starts a goroutine on a pure floor", f.at(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && x.Obj == nil && slices.Contains(impureCalls, n.Sel.Name) {
					t.Errorf("%s: time.%s on a pure floor", f.at(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	documented, seen := map[string]bool{}, map[string]string{}
	for _, f := range sources(t) {
		seen[f.dir] = f.ast.Name.Name
		if f.ast.Doc == nil {
			continue
		}
		text := f.ast.Doc.Text()
		if strings.HasPrefix(text, "Package "+f.ast.Name.Name+" ") || (f.ast.Name.Name == "main" && strings.HasPrefix(text, "Command ")) {
			documented[f.dir] = true
		}
	}
	for dir, name := range seen {
		if !documented[dir] {
			t.Errorf("%s: package %s has no comment that starts with its name", dir, name)
		}
	}
}

// TestOnlyMainExits keeps os.Exit and log.Fatal out of everything that has something to clean up.
func TestOnlyMainExits(t *testing.T) {
	for _, f := range sources(t) {
		if strings.HasPrefix(f.dir, "cmd/") || f.dir == "internal/mars/marstest/marssim" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && x.Obj == nil && x.Name == "os" && s.Sel.Name == "Exit" {
				t.Errorf("%s: only cmd/ exits", f.at(n.Pos()))
			}
			return true
		})
	}
}
