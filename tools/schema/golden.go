package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
)

// Kinds of which an object with every field set is written.
var full = []string{"v1,Pod", "v1,PersistentVolume", "v1,Service", "v1,Node", "admissionregistration.k8s.io/v1,ValidatingWebhookConfiguration",
	"apiextensions.k8s.io/v1,CustomResourceDefinition", "autoscaling/v2,HorizontalPodAutoscaler", "resource.k8s.io/v1,ResourceSlice",
	"authorization.k8s.io/v1,SubjectAccessReview", "v1,Status", "v1,DeleteOptions", "v1,APIResourceList"}

// goldenText writes, per kind, an empty object and one with some fields set; per line: kind, JSON, protobuf.
func goldenText(t *Table) string {
	roots := slices.Clone(t.roots)
	slices.SortFunc(roots, func(a, b schema.GroupVersionKind) int { return strings.Compare(a.String(), b.String()) })
	var b strings.Builder
	for _, gvk := range roots {
		typ := t.kinds[gvk]
		if _, ok := reflect.New(typ).Interface().(interface{ Marshal() ([]byte, error) }); !ok || gvk.Kind == "WatchEvent" {
			continue
		}
		name := gvk.GroupVersion().String() + "," + gvk.Kind
		chances := []float64{0}
		if !strings.HasSuffix(gvk.Kind, "List") {
			chances = append(chances, 0.3)
		}
		if slices.Contains(full, name) {
			chances = append(chances, 1)
		}
		for _, chance := range chances {
			f := filler{rand.New(rand.NewSource(int64(len(name)*1000) + int64(chance*100))), chance}
			v := reflect.New(typ)
			f.fill(v.Elem(), 0)
			writeGolden(&b, gvk, v.Interface())
		}
	}
	return b.String()
}

func writeGolden(b *strings.Builder, gvk schema.GroupVersionKind, object any) {
	o, ok := object.(runtime.Object)
	if !ok {
		return
	}
	o.GetObjectKind().SetGroupVersionKind(gvk)
	text, err := json.Marshal(o)
	check(err)
	var pb bytes.Buffer
	check(protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, &pb))
	fmt.Fprintf(b, "%s,%s\t%s\t%s\n", gvk.GroupVersion(), gvk.Kind, text, base64.StdEncoding.EncodeToString(pb.Bytes()))
}

type filler struct {
	rand   *rand.Rand
	chance float64
}

func (f filler) some() bool { return f.rand.Float64() < f.chance }

func (f filler) word() string {
	return []string{"a", "web", "x<y>&z", "prod-0", "größe", "tier"}[f.rand.Intn(6)]
}

func (f filler) fill(v reflect.Value, depth int) {
	if f.special(v, depth) {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if f.some() && depth < 12 {
			v.Set(reflect.New(v.Type().Elem()))
			// A pointer to a zero time or set is null in JSON: it doesn't come back.
			if !(filler{f.rand, 1}).special(v.Elem(), depth+1) {
				f.fill(v.Elem(), depth+1)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				f.fill(v.Field(i), depth+1)
			}
		}
	case reflect.Slice:
		if !f.some() || depth > 12 {
			return
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte(f.word()))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1+f.rand.Intn(2)/2, 2))
		for i := range v.Len() {
			f.fill(v.Index(i), depth+1)
		}
	case reflect.Map:
		if !f.some() || depth > 12 {
			return
		}
		v.Set(reflect.MakeMap(v.Type()))
		for i := range 1 + f.rand.Intn(2) {
			value := reflect.New(v.Type().Elem()).Elem()
			f.fill(value, depth+1)
			if value.Kind() == reflect.Slice && value.IsNil() {
				// Nil and empty are the same in protobuf, not in JSON.
				value.Set(reflect.MakeSlice(value.Type(), 1, 1))
			}
			v.SetMapIndex(reflect.ValueOf(fmt.Sprintf("k%d", i)).Convert(v.Type().Key()), value)
		}
	default:
		if f.some() {
			f.scalar(v)
		}
	}
}

func (f filler) scalar(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(f.word())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt([]int64{1, -1, 80, 300, -2147483648, 2147483647}[f.rand.Intn(6)])
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(f.rand.Intn(1000)))
	case reflect.Float64:
		v.SetFloat([]float64{1, 0.5, -2.25}[f.rand.Intn(3)])
	}
}

// special fills types whose fields can't be set one by one.
func (f filler) special(v reflect.Value, depth int) bool {
	moment := time.Unix(1700000000+int64(f.rand.Intn(1e6)), 0).UTC()
	var value any
	switch v.Interface().(type) {
	case meta.TypeMeta:
		return true
	case resource.Quantity:
		value = resource.MustParse([]string{"100m", "1Gi", "1500Mi", "2", "1e3", "0.5"}[f.rand.Intn(6)])
	case intstr.IntOrString:
		value = intstr.Parse([]string{"80", "http", "25%", "-1"}[f.rand.Intn(4)])
	case meta.Time:
		value = meta.NewTime(moment)
	case meta.MicroTime:
		value = meta.NewMicroTime(moment.Add(123456 * time.Microsecond))
	case meta.Duration:
		value = meta.Duration{Duration: 90 * time.Second}
	case meta.FieldsV1:
		value = *meta.NewFieldsV1(`{"f:metadata":{"f:labels":{".":{}}}}`)
	case runtime.RawExtension:
		value = runtime.RawExtension{Raw: []byte(`{"a":[1,"b",null,true],"c":{}}`)}
	case apiextensions.JSON:
		value = apiextensions.JSON{Raw: []byte(`{"x":[1.5,"a"]}`)}
	case apiextensions.JSONSchemaPropsOrBool:
		o := apiextensions.JSONSchemaPropsOrBool{Allows: true}
		if f.some() {
			o.Schema = f.props()
		}
		value = o
	case apiextensions.JSONSchemaPropsOrArray:
		o := apiextensions.JSONSchemaPropsOrArray{Schema: f.props()}
		if f.rand.Intn(2) == 0 {
			o = apiextensions.JSONSchemaPropsOrArray{JSONSchemas: []apiextensions.JSONSchemaProps{*f.props(), *f.props()}}
		}
		value = o
	case apiextensions.JSONSchemaPropsOrStringArray:
		o := apiextensions.JSONSchemaPropsOrStringArray{Schema: f.props()}
		if f.rand.Intn(2) == 0 {
			o = apiextensions.JSONSchemaPropsOrStringArray{Property: []string{"a", "b"}}
		}
		value = o
	case apiextensions.JSONSchemaProps:
		if depth < 8 {
			return false
		}
		value = *f.props()
	default:
		return false
	}
	if f.some() {
		v.Set(reflect.ValueOf(value))
	}
	return true
}

func (f filler) props() *apiextensions.JSONSchemaProps {
	return &apiextensions.JSONSchemaProps{Type: f.word(), Nullable: f.rand.Intn(2) == 0}
}
