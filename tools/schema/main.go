// Writes the facts of the published Kubernetes API as sorted text, which the api crate embeds:
//
//	types.txt      every type that a request or response body can hold, field by field
//	resources.txt  every group, version and resource that is served by default
//	golden.txt     objects as JSON and protobuf, written by the published Go types, for the codecs' tests
//
// The facts come from struct tags (JSON names, protobuf numbers, pointers, patch strategies), from the OpenAPI v3 and
// discovery documents of k8s.io/kubernetes (list types, defaults, required fields, verbs), and from markers in the Go
// sources (enums). No prose is taken.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const kubernetesModule = "k8s.io/kubernetes@v1.37.2"

func main() {
	out := flag.String("out", "", "folder of types.txt and resources.txt")
	golden := flag.String("golden", "", "file of golden objects")
	flag.Parse()
	kube := moduleDir(kubernetesModule)

	resources := readResources(kube)
	write(filepath.Join(*out, "resources.txt"), resources.text())

	table := newTable(readOpenAPI(filepath.Join(kube, "api/openapi-spec/v3")), readEnums())
	for _, gvk := range resources.kinds() {
		table.addRoot(gvk)
	}
	table.addExtras()
	write(filepath.Join(*out, "types.txt"), table.text())
	if *golden != "" {
		write(*golden, goldenText(table))
	}
}

// moduleDir returns where the module cache holds a module, downloading it if need be.
func moduleDir(module string) string {
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	check(err)
	var m struct{ Dir string }
	check(json.Unmarshal(b, &m))
	return m.Dir
}

func write(path, text string) {
	check(os.WriteFile(path, []byte(text), 0o644))
	fmt.Printf("%s: %d bytes\n", path, len(text))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "schema:", err)
		os.Exit(1)
	}
}
