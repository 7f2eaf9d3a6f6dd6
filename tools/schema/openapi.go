package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// openapiSchema is what is read of a schema of the OpenAPI v3 documents.
type openapiSchema struct {
	Properties map[string]openapiField `json:"properties"`
	Required   []string                `json:"required"`
	MapType    string                  `json:"x-kubernetes-map-type"`
	GVKs       []struct {
		Group, Version, Kind string
	} `json:"x-kubernetes-group-version-kind"`
}

type openapiField struct {
	Default       json.RawMessage `json:"default"`
	Format        string          `json:"format"`
	ListType      string          `json:"x-kubernetes-list-type"`
	ListMapKeys   []string        `json:"x-kubernetes-list-map-keys"`
	MapType       string          `json:"x-kubernetes-map-type"`
	PatchStrategy string          `json:"x-kubernetes-patch-strategy"`
	PatchMergeKey string          `json:"x-kubernetes-patch-merge-key"`
}

func readOpenAPI(dir string) map[string]openapiSchema {
	out := map[string]openapiSchema{}
	entries, err := os.ReadDir(dir)
	check(err)
	for _, e := range entries {
		var doc struct {
			Components struct{ Schemas map[string]openapiSchema }
		}
		readJSON(filepath.Join(dir, e.Name()), &doc)
		for name, s := range doc.Components.Schemas {
			if len(s.Properties) > 0 || out[name].Properties == nil {
				out[name] = s
			}
		}
	}
	return out
}

// readEnums collects the constants of every string type that is marked +enum, by "package path.type".
func readEnums() map[string][]string {
	out := map[string][]string{}
	for _, module := range []string{"k8s.io/api", "k8s.io/apimachinery", "k8s.io/apiextensions-apiserver", "k8s.io/kube-aggregator"} {
		root := moduleDir(module + "@v0.37.2")
		check(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasPrefix(d.Name(), "types") && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				rel, _ := filepath.Rel(root, filepath.Dir(path))
				readEnumFile(path, module+"/"+rel, out)
			}
			return err
		}))
	}
	for _, values := range out {
		slices.Sort(values)
	}
	return out
}

func readEnumFile(path, pkg string, out map[string][]string) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
	check(err)
	marked := map[string]bool{}
	for _, decl := range file.Decls {
		if g, ok := decl.(*ast.GenDecl); ok && g.Tok == token.TYPE && strings.Contains(commentText(g.Doc), "+enum") {
			for _, spec := range g.Specs {
				marked[spec.(*ast.TypeSpec).Name.Name] = true
			}
		}
	}
	for _, decl := range file.Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, spec := range g.Specs {
			v := spec.(*ast.ValueSpec)
			ident, ok := v.Type.(*ast.Ident)
			if !ok || !marked[ident.Name] {
				continue
			}
			for _, value := range v.Values {
				if lit, ok := value.(*ast.BasicLit); ok {
					s, err := strconv.Unquote(lit.Value)
					check(err)
					key := pkg + "." + ident.Name
					if !slices.Contains(out[key], s) {
						out[key] = append(out[key], s)
					}
				}
			}
		}
	}
}

func commentText(group *ast.CommentGroup) string {
	if group == nil {
		return ""
	}
	var b strings.Builder
	for _, c := range group.List {
		b.WriteString(c.Text + "\n")
	}
	return b.String()
}
