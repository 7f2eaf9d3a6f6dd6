// Values sealed by kube-apiserver's own code, for the tests of crates/request/seal, and the other direction: values that were
// sealed there, opened by it. `go run . make` writes the one; `go run . check FILE` reads the other, which the crate's tests leave
// in target/tmp/sealed-here.txt. `go run . kms make` and `go run . kms FILE` (kms-sealed-here.bin) do the same with a plug-in.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"strings"

	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
)

const dir = "../../crates/request/seal/golden/"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func main() {
	ctx := context.Background()
	config := must(encryptionconfig.LoadEncryptionConfig(ctx, dir+"config.yaml", false, ""))
	transformers := map[string]value.Transformer{}
	for resource, t := range config.Transformers {
		transformers[resource.Resource] = t
	}
	names := []string{"gcm16", "gcm24", "gcm32", "cbc16", "cbc24", "cbc32", "secretbox"}
	values := []string{"", "x", "sixteen bytes!!!", strings.Repeat("k8s\x00 a longer value \xff", 100)}
	switch os.Args[1] {
	case "kms":
		kms(ctx, os.Args[2])
	case "make":
		out := must(os.Create(dir + "upstream.txt"))
		defer out.Close()
		for _, name := range names {
			for i, v := range values {
				key := fmt.Sprintf("/registry/%s/default/object-%d", name, i)
				sealed := must(transformers[name].TransformToStorage(ctx, []byte(v), value.DefaultContext(key)))
				fmt.Fprintln(out, name, key, "v:"+base64.StdEncoding.EncodeToString([]byte(v)), base64.StdEncoding.EncodeToString(sealed))
			}
		}
	case "check":
		in := bufio.NewScanner(must(os.Open(os.Args[2])))
		in.Buffer(nil, 1<<20)
		n := 0
		for in.Scan() {
			f := strings.Fields(in.Text())
			opened, stale, err := transformers[f[0]].TransformFromStorage(ctx, must(base64.StdEncoding.DecodeString(f[3])), value.DefaultContext(f[1]))
			want := must(base64.StdEncoding.DecodeString(strings.TrimPrefix(f[2], "v:")))
			if err != nil || stale || string(opened) != string(want) {
				panic(fmt.Sprint(f[0], " ", f[1], ": ", err, " stale ", stale))
			}
			n++
		}
		fmt.Println(n, "values of ours are opened by kube-apiserver's code")
	}
}
