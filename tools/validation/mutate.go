package main

import (
	"fmt"
	"math/rand"
	"sort"
	"strings"
)

// place is where a value stands.
type place struct {
	pointer string
	set     func(any)
	remove  func()
	value   any
}

// change is one changed value, as the golden file has it: a JSON pointer, and the new value or nothing.
type change struct {
	pointer string
	value   any
	removed bool
}

func (c change) String() string {
	if c.removed {
		return c.pointer + "\t-"
	}
	return c.pointer + "\t" + compact(c.value)
}

var escape = strings.NewReplacer("~", "~0", "/", "~1")

// places lists every value of an object besides its type and namespace.
func places(v any, pointer string, into *[]place) {
	switch x := v.(type) {
	case map[string]any:
		keys := []string{}
		for k := range x {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			if k == "apiVersion" || k == "kind" || k == "namespace" || k == "creationTimestamp" {
				if _, isText := x[k].(string); isText {
					continue
				}
			}
			at := pointer + "/" + escape.Replace(k)
			*into = append(*into, place{at, func(n any) { x[k] = n }, func() { delete(x, k) }, x[k]})
			places(x[k], at, into)
		}
	case []any:
		for i := range x {
			at := fmt.Sprintf("%s/%d", pointer, i)
			*into = append(*into, place{at, func(n any) { x[i] = n }, nil, x[i]})
			places(x[i], at, into)
		}
	}
}

// mutate changes one value of an object.
func mutate(r *rand.Rand, object map[string]any) (change, bool) {
	all := []place{}
	places(object, "", &all)
	p := all[r.Intn(len(all))]
	if p.remove != nil && r.Intn(4) == 0 {
		p.remove()
		return change{pointer: p.pointer, removed: true}, true
	}
	var value any
	switch x := p.value.(type) {
	case string:
		value = []string{"", "Bad_Value!", "a/b/c", "..", "-1", strings.Repeat("x", 72)}[r.Intn(6)]
	case float64:
		value = []float64{-1, 0, 70000, 3}[r.Intn(4)]
	case bool:
		value = !x
	case []any:
		value = []any{}
		if r.Intn(3) > 0 && len(x) > 0 {
			value = append(append([]any{}, x...), x[0])
		}
	case map[string]any:
		value = map[string]any{}
	default:
		return change{}, false
	}
	p.set(value)
	return change{pointer: p.pointer, value: value}, true
}
