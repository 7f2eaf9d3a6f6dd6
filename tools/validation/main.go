// Asks the published Kubernetes server what it says about objects: what its strategies make of sound ones, and what they
// refuse about ones that were changed at random (from a fixed seed). The answers are the golden file of our own rules.
//
// Input: objects.yaml, sound objects. Output, a line per case, tab separated:
//
//	object KIND OBJECT RESULT         a sound object, and what the server makes of it
//	create POINTER VALUE RESULT|ERRORS  the same with one value changed (- removes it); RESULT is ok where it is long
//	update POINTER VALUE ERRORS         an update of the sound object that changes one value
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"slices"
	"sort"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/capabilities"
	_ "k8s.io/kubernetes/pkg/controlplane"
	"sigs.k8s.io/yaml"
)

const (
	mutationsPerObject = 30
	longResult         = 300
)

func main() {
	in := flag.String("in", "objects.yaml", "sound objects")
	out := flag.String("out", "", "golden file")
	flag.Parse()
	capabilities.Setup(true, 0)
	text, err := os.ReadFile(*in)
	check(err)
	var b strings.Builder
	count := 0
	for _, doc := range strings.Split(string(text), "\n---\n") {
		var object map[string]any
		check(yaml.Unmarshal([]byte(doc), &object))
		if object == nil {
			continue
		}
		count += emit(&b, object)
	}
	check(os.WriteFile(*out, []byte(b.String()), 0o644))
	fmt.Printf("%s: %d cases, %d bytes\n", *out, count, b.Len())
}

func emit(b *strings.Builder, object map[string]any) int {
	kind := fmt.Sprint(object["apiVersion"], ",", object["kind"])
	n := 0
	result, errs, decoded := create(object)
	if !decoded {
		_, _, err := legacyscheme.Codecs.UniversalDeserializer().Decode([]byte(compact(object)), nil, nil)
		check(fmt.Errorf("%s %v can't be read: %w", kind, object["metadata"], err))
	}
	if len(errs) > 0 {
		check(fmt.Errorf("%s %v is not sound: %v", kind, object["metadata"], errs))
	}
	fmt.Fprintf(b, "object\t%s\t%s\t%s\n", kind, compact(object), compact(result))
	n++
	r := rand.New(rand.NewSource(int64(len(kind)) * 7919))
	seen := map[string]bool{}
	for range mutationsPerObject * 4 {
		if len(seen) >= mutationsPerObject {
			break
		}
		changed := clone(object)
		c, ok := mutate(r, changed)
		if !ok || seen[c.String()] {
			continue
		}
		result, errs, decoded := create(changed)
		if !decoded {
			continue
		}
		seen[c.String()] = true
		n++
		said := "ok"
		if text := compact(result); len(errs) == 0 && len(text) < longResult {
			said = text
		} else if len(errs) > 0 {
			said = compact(errs)
		}
		fmt.Fprintf(b, "create\t%s\t%s\n", c, said)
	}
	for range mutationsPerObject / 2 {
		changed := clone(object)
		c, ok := mutate(r, changed)
		if !ok {
			continue
		}
		if errs, decoded := update(object, changed); decoded && len(errs) > 0 {
			fmt.Fprintf(b, "update\t%s\t%s\n", c, compact(errs))
			n++
		}
	}
	return n
}

func compact(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	check(e.Encode(v))
	return strings.TrimSpace(b.String())
}

func clone(v map[string]any) map[string]any {
	var out map[string]any
	check(json.Unmarshal([]byte(compact(v)), &out))
	return out
}

// decode reads an object as the server does, with its defaults and system fields.
func decode(object map[string]any) (o runtime.Object, gvk schema.GroupVersionKind, ok bool) {
	decoded, g, err := legacyscheme.Codecs.UniversalDeserializer().Decode([]byte(compact(object)), nil, nil)
	if err != nil {
		return nil, gvk, false
	}
	legacyscheme.Scheme.Default(decoded)
	internal, err := legacyscheme.Scheme.ConvertToVersion(decoded, schema.GroupVersion{Group: g.Group, Version: runtime.APIVersionInternal})
	if err != nil {
		return nil, gvk, false
	}
	m, err := meta.Accessor(internal)
	check(err)
	m.SetUID(types.UID("11111111-2222-3333-4444-555555555555"))
	m.SetCreationTimestamp(metav1.Unix(1700000000, 0))
	return internal, *g, true
}

func request(gvk schema.GroupVersionKind, namespaced bool, update bool) context.Context {
	namespace := ""
	if namespaced {
		namespace = "default"
	}
	ctx := genericapirequest.WithNamespace(context.Background(), namespace)
	info := &genericapirequest.RequestInfo{APIGroup: gvk.Group, APIVersion: gvk.Version, IsResourceRequest: true, Verb: "create"}
	if update {
		info.Verb = "update"
	}
	return genericapirequest.WithRequestInfo(ctx, info)
}

func create(object map[string]any) (result map[string]any, errs []string, decoded bool) {
	o, gvk, ok := decode(object)
	if !ok {
		return nil, nil, false
	}
	s := strategies[gvk.GroupKind()]
	if s == nil {
		check(fmt.Errorf("no strategy of %s", gvk))
	}
	m, _ := meta.Accessor(o)
	if m.GetName() == "" && m.GetGenerateName() != "" {
		return nil, nil, false
	}
	if err := rest.BeforeCreate(s, request(gvk, s.NamespaceScoped(), false), o); err != nil {
		return nil, causes(err), true
	}
	return encode(o, gvk), nil, true
}

func update(before, after map[string]any) (errs []string, decoded bool) {
	old, gvk, ok := decode(before)
	if !ok {
		return nil, false
	}
	create := strategies[gvk.GroupKind()]
	s, isUpdate := create.(rest.RESTUpdateStrategy)
	if !isUpdate {
		return nil, false
	}
	check(rest.BeforeCreate(create, request(gvk, create.NamespaceScoped(), false), old))
	now, _, ok := decode(after)
	if !ok {
		return nil, false
	}
	m, _ := meta.Accessor(old)
	m.SetResourceVersion("1")
	n, _ := meta.Accessor(now)
	n.SetResourceVersion("1")
	if err := rest.BeforeUpdate(s, request(gvk, create.NamespaceScoped(), true), now, old); err != nil {
		return causes(err), true
	}
	return nil, true
}

func causes(err error) []string {
	status, ok := err.(apierrors.APIStatus)
	if !ok || status.Status().Details == nil || len(status.Status().Details.Causes) == 0 {
		return []string{"?: " + err.Error()}
	}
	out := []string{}
	for _, c := range status.Status().Details.Causes {
		out = append(out, c.Field+": "+c.Message)
	}
	sort.Strings(out)
	return slices.Compact(out)
}

func encode(o runtime.Object, gvk schema.GroupVersionKind) map[string]any {
	versioned, err := legacyscheme.Scheme.ConvertToVersion(o, gvk.GroupVersion())
	check(err)
	versioned.GetObjectKind().SetGroupVersionKind(gvk)
	text, err := json.Marshal(versioned)
	check(err)
	var out map[string]any
	check(json.Unmarshal(text, &out))
	return out
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "validation:", err)
		os.Exit(1)
	}
}
