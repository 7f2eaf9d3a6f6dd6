package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Resources are the groups, versions and resources that upstream serves without any flag.
type Resources struct {
	groups []group
}

type group struct {
	name     string
	priority string
	versions []groupVersion
}

type groupVersion struct {
	name      string
	priority  string
	resources []apiResource
}

type apiResource struct {
	Name               string   `json:"name"`
	SingularName       string   `json:"singularName"`
	Kind               string   `json:"kind"`
	Group              string   `json:"group"`
	Version            string   `json:"version"`
	Namespaced         bool     `json:"namespaced"`
	ShortNames         []string `json:"shortNames"`
	Categories         []string `json:"categories"`
	Verbs              []string `json:"verbs"`
	StorageVersionHash string   `json:"storageVersionHash"`
}

func readJSON(path string, into any) {
	b, err := os.ReadFile(path)
	check(err)
	check(json.Unmarshal(b, into))
}

// readResources reads the discovery documents. They list everything that can be served; what is served by default are
// the stable versions (see DefaultAPIResourceConfigSource).
func readResources(kube string) Resources {
	stable := regexp.MustCompile(`^v[0-9]+$`)
	priorities := readPriorities(kube)
	dir := filepath.Join(kube, "api/discovery")
	read := func(g, v, file string) groupVersion {
		var list struct{ Resources []apiResource }
		readJSON(filepath.Join(dir, file), &list)
		return groupVersion{v, priorities[[2]string{g, v}][1], list.Resources}
	}
	out := Resources{groups: []group{{"", priorities[[2]string{"", "v1"}][0], []groupVersion{read("", "v1", "api__v1.json")}}}}
	var apis struct {
		Groups []struct {
			Name     string
			Versions []struct{ Version string }
		}
	}
	readJSON(filepath.Join(dir, "apis.json"), &apis)
	for _, g := range apis.Groups {
		next := group{name: g.Name}
		for _, v := range g.Versions {
			if stable.MatchString(v.Version) {
				next.priority = priorities[[2]string{g.Name, v.Version}][0]
				next.versions = append(next.versions, read(g.Name, v.Version, "apis__"+g.Name+"__"+v.Version+".json"))
			}
		}
		if len(next.versions) > 0 {
			out.groups = append(out.groups, next)
		}
	}
	return out
}

// readPriorities returns the group and version priorities of the APIServices that upstream registers.
func readPriorities(kube string) map[[2]string][2]string {
	line := regexp.MustCompile(`\{Group: "([^"]*)", Version: "([^"]*)"\}:\s*\{Group: (\d+), Version: (\d+)\}`)
	out := map[[2]string][2]string{}
	for _, file := range []string{"pkg/controlplane/apiserver/aggregator.go", "cmd/kube-apiserver/app/aggregator.go"} {
		b, err := os.ReadFile(filepath.Join(kube, file))
		check(err)
		for _, m := range line.FindAllStringSubmatch(string(b), -1) {
			out[[2]string{m[1], m[2]}] = [2]string{m[3], m[4]}
		}
	}
	// The aggregator's own group is announced by itself, first of all.
	out[[2]string{"apiregistration.k8s.io", "v1"}] = [2]string{"18000", "1"}
	return out
}

func (r Resources) text() string {
	var b strings.Builder
	b.WriteString("# Groups, versions and resources served by default, in the order of upstream's discovery.\n")
	b.WriteString("# group NAME PRIORITY / version NAME PRIORITY / resource NAME SINGULAR KIND SCOPE … / sub NAME KIND …\n")
	for _, g := range r.groups {
		fmt.Fprintf(&b, "group %q %s\n", g.name, g.priority)
		for _, v := range g.versions {
			fmt.Fprintf(&b, " version %s %s\n", v.name, v.priority)
			for _, x := range v.resources {
				writeResource(&b, x)
			}
		}
	}
	return b.String()
}

func writeResource(b *strings.Builder, x apiResource) {
	name, sub, isSub := strings.Cut(x.Name, "/")
	if isSub {
		fmt.Fprintf(b, "   sub %s %s", sub, x.Kind)
	} else {
		scope := "cluster"
		if x.Namespaced {
			scope = "namespaced"
		}
		fmt.Fprintf(b, "  resource %s %s %s %s", name, x.SingularName, x.Kind, scope)
	}
	if x.Version != "" {
		fmt.Fprintf(b, " gv=%s", schema.GroupVersion{Group: x.Group, Version: x.Version})
	}
	for _, list := range []struct {
		key   string
		items []string
	}{{"short", x.ShortNames}, {"categories", x.Categories}, {"verbs", x.Verbs}} {
		if len(list.items) > 0 {
			fmt.Fprintf(b, " %s=%s", list.key, strings.Join(list.items, ","))
		}
	}
	if x.StorageVersionHash != "" {
		fmt.Fprintf(b, " hash=%s", x.StorageVersionHash)
	}
	b.WriteString("\n")
}

// kinds returns every kind that stands in a body: of resources with their lists, and of subresources.
func (r Resources) kinds() []schema.GroupVersionKind {
	var out []schema.GroupVersionKind
	for _, g := range r.groups {
		for _, v := range g.versions {
			for _, x := range v.resources {
				gvk := schema.GroupVersionKind{Group: g.name, Version: v.name, Kind: x.Kind}
				if x.Version != "" {
					gvk.Group, gvk.Version = x.Group, x.Version
				}
				out = append(out, gvk)
				if slices.Contains(x.Verbs, "list") {
					gvk.Kind += "List"
					out = append(out, gvk)
				}
			}
		}
	}
	return out
}
