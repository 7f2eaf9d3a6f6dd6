package main

import (
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"

	admission "k8s.io/api/admission/v1"
	apidiscovery "k8s.io/api/apidiscovery/v2"
	authentication "k8s.io/api/authentication/v1"
	autoscaling "k8s.io/api/autoscaling/v1"
	core "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

func init() {
	check(apiextensions.AddToScheme(scheme.Scheme))
	check(apiregistration.AddToScheme(scheme.Scheme))
}

// Types whose JSON form is not that of their Go fields.
var scalars = map[reflect.Type]string{
	reflect.TypeOf(resource.Quantity{}):    "quantity",
	reflect.TypeOf(intstr.IntOrString{}):   "intOrString",
	reflect.TypeOf(meta.Time{}):            "time",
	reflect.TypeOf(meta.MicroTime{}):       "microTime",
	reflect.TypeOf(meta.Duration{}):        "duration",
	reflect.TypeOf(meta.FieldsV1{}):        "fieldsV1",
	reflect.TypeOf(runtime.RawExtension{}): "raw",
}

// Types that are any JSON; the format says what protobuf makes of them.
var anyJSON = map[reflect.Type]string{
	reflect.TypeOf(apiextensions.JSON{}):                         "JSON",
	reflect.TypeOf(apiextensions.JSONSchemaPropsOrBool{}):        "JSONSchemaPropsOrBool",
	reflect.TypeOf(apiextensions.JSONSchemaPropsOrArray{}):       "JSONSchemaPropsOrArray",
	reflect.TypeOf(apiextensions.JSONSchemaPropsOrStringArray{}): "JSONSchemaPropsOrStringArray",
}

// Objects in lists whose kind is set by conversion (pkg/apis/apps/v1).
var elementKinds = map[string]string{
	"io.k8s.api.apps.v1.StatefulSetSpec.volumeClaimTemplates": "v1,PersistentVolumeClaim",
}

// Table is the set of types reachable from its roots.
type Table struct {
	openapi map[string]openapiSchema
	enums   map[string][]string
	kinds   map[schema.GroupVersionKind]reflect.Type
	types   map[reflect.Type][]field
	roots   []schema.GroupVersionKind
}

type field struct {
	name         string
	typ          string
	number       int
	inlineNumber int
	inlineType   string
	elements     string
	// Where the field stands in the Go type, as its encoder writes it.
	place int
	// What Go's decoder calls the type, where that doesn't follow from it, and the structs between that stand inline.
	goType, embedded    string
	pointer             bool
	omitEmpty, omitZero bool
	format              string
	enums               []string
	strategy, mergeKey  string
	def                 string
	required            bool
	listType, mapType   string
	listKeys            []string
}

func newTable(openapi map[string]openapiSchema, enums map[string][]string) *Table {
	return &Table{openapi, enums, map[schema.GroupVersionKind]reflect.Type{}, map[reflect.Type][]field{}, nil}
}

func (t *Table) addRoot(gvk schema.GroupVersionKind) {
	typ, ok := scheme.Scheme.AllKnownTypes()[gvk]
	if !ok {
		check(fmt.Errorf("no Go type for %s", gvk))
	}
	if _, ok := t.kinds[gvk]; ok {
		return
	}
	t.kinds[gvk] = typ
	t.roots = append(t.roots, gvk)
	t.walk(typ)
}

// addExtras adds what discovery doesn't list but bodies hold.
func (t *Table) addExtras() {
	for gv, objects := range map[schema.GroupVersion][]any{
		{Version: "v1"}: {
			meta.Status{}, meta.APIGroup{}, meta.APIGroupList{}, meta.APIResourceList{}, meta.APIVersions{},
			meta.DeleteOptions{}, meta.CreateOptions{}, meta.UpdateOptions{}, meta.PatchOptions{}, meta.GetOptions{}, meta.ListOptions{},
			meta.WatchEvent{}, core.List{}, core.SerializedReference{}, core.RangeAllocation{},
		},
		{Group: "meta.k8s.io", Version: "v1"}:           {meta.Table{}, meta.PartialObjectMetadata{}, meta.PartialObjectMetadataList{}},
		{Group: "admission.k8s.io", Version: "v1"}:      {admission.AdmissionReview{}},
		{Group: "apidiscovery.k8s.io", Version: "v2"}:   {apidiscovery.APIGroupDiscovery{}, apidiscovery.APIGroupDiscoveryList{}},
		{Group: "apiextensions.k8s.io", Version: "v1"}:  {apiextensions.ConversionReview{}},
		{Group: "authentication.k8s.io", Version: "v1"}: {authentication.TokenRequest{}},
		{Group: "autoscaling", Version: "v1"}:           {autoscaling.Scale{}},
		{Group: "policy", Version: "v1"}:                {policy.Eviction{}},
	} {
		for _, o := range objects {
			typ := reflect.TypeOf(o)
			gvk := gv.WithKind(typ.Name())
			if _, ok := t.kinds[gvk]; !ok {
				t.kinds[gvk] = typ
				t.roots = append(t.roots, gvk)
				t.walk(typ)
			}
		}
	}
	t.walk(reflect.TypeOf(meta.LabelSelector{}))
	t.walk(reflect.TypeOf(version.Info{}))
	t.walk(reflect.TypeOf(apiextensions.JSONSchemaProps{}))
}

// protoName is the message's name: the package path with dots.
func protoName(t reflect.Type) string {
	return strings.NewReplacer("/", ".", "-", "_").Replace(t.PkgPath()) + "." + t.Name()
}

// modelName is the name that OpenAPI has for a type.
func modelName(t reflect.Type) string {
	if n, ok := reflect.New(t).Interface().(interface{ OpenAPIModelName() string }); ok {
		return n.OpenAPIModelName()
	}
	host, rest, _ := strings.Cut(t.PkgPath(), "/")
	parts := strings.Split(host, ".")
	slices.Reverse(parts)
	return strings.Join(parts, ".") + "." + strings.ReplaceAll(rest, "/", ".") + "." + t.Name()
}

func (t *Table) walk(typ reflect.Type) {
	if _, ok := t.types[typ]; ok {
		return
	}
	t.types[typ] = nil
	fields := []field{}
	t.collect(typ, &fields, 0, "", "")
	facts := t.openapi[modelName(typ)]
	for i := range fields {
		f := &fields[i]
		f.place = i
		f.elements = elementKinds[modelName(typ)+"."+f.name]
		p, known := facts.Properties[f.name]
		if !known {
			continue
		}
		f.listType, f.mapType, f.listKeys = p.ListType, p.MapType, p.ListMapKeys
		f.required = slices.Contains(facts.Required, f.name)
		if f.format == "" && p.Format != "int32" && p.Format != "int64" && p.Format != "double" && p.Format != "byte" {
			f.format = p.Format
		}
		// Zero defaults of values only restate what Go does; on pointers they are facts.
		switch d := string(p.Default); d {
		case "", "{}", "null":
		case `""`, "0", "false":
			if f.pointer {
				f.def = d
			}
		default:
			f.def = d
		}
		if p.PatchStrategy != f.strategy || p.PatchMergeKey != f.mergeKey {
			check(fmt.Errorf("%s.%s: OpenAPI and struct tag disagree on the patch strategy", typ, f.name))
		}
	}
	sort.Slice(fields, func(i, j int) bool { return fields[i].name < fields[j].name })
	t.types[typ] = fields
}

func (t *Table) collect(typ reflect.Type, fields *[]field, inlineNumber int, inlineType, embedded string) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		tag := strings.Split(f.Tag.Get("json"), ",")
		number := 0
		if pb := strings.Split(f.Tag.Get("protobuf"), ","); len(pb) > 1 {
			n, err := strconv.Atoi(pb[1])
			check(err)
			number = n
		}
		if f.Anonymous && tag[0] == "" {
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			within := strings.TrimPrefix(embedded+"."+f.Name, ".")
			if number != 0 {
				// Of messages inlined within inlined ones, the outermost is named: its own fields say the rest.
				t.walk(inner)
				if inlineNumber == 0 {
					t.collect(inner, fields, number, modelName(inner), within)
				} else {
					t.collect(inner, fields, inlineNumber, inlineType, within)
				}
			} else {
				// TypeMeta: in protobuf it stands in the envelope only.
				from := len(*fields)
				t.collect(inner, fields, inlineNumber, inlineType, within)
				for j := from; j < len(*fields); j++ {
					(*fields)[j].number = 0
				}
			}
			continue
		}
		if tag[0] == "" || tag[0] == "-" {
			continue
		}
		x := field{name: tag[0], number: number, inlineNumber: inlineNumber, inlineType: inlineType, embedded: embedded, goType: goType(f.Type),
			omitEmpty: slices.Contains(tag[1:], "omitempty"), omitZero: slices.Contains(tag[1:], "omitzero"),
			strategy: f.Tag.Get("patchStrategy"), mergeKey: f.Tag.Get("patchMergeKey")}
		switch f.Type.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			x.pointer = true
		}
		x.typ = t.typeText(f.Type, &x)
		checkWire(typ, f)
		*fields = append(*fields, x)
	}
}

// checkWire holds what the codecs assume: nothing is packed or zigzag coded. (Which of varint and bytes a tag says is
// not reliable upstream; the wire type follows from the field's type, as the golden objects show.)
func checkWire(typ reflect.Type, f reflect.StructField) {
	pb := f.Tag.Get("protobuf")
	if strings.Contains(pb, "packed") || strings.Contains(pb, "zigzag") {
		check(fmt.Errorf("%s.%s: unexpected wire form %q", typ, f.Name, pb))
	}
}

func (t *Table) typeText(typ reflect.Type, x *field) string {
	if typ.Kind() == reflect.Pointer {
		return t.typeText(typ.Elem(), x)
	}
	if s, ok := scalars[typ]; ok {
		return s
	}
	if format, ok := anyJSON[typ]; ok {
		x.format = format
		return "any"
	}
	switch typ.Kind() {
	case reflect.Struct:
		t.walk(typ)
		return modelName(typ)
	case reflect.Slice:
		if typ.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		// Some named lists are messages of their own in protobuf.
		if _, ok := reflect.New(typ).Interface().(interface{ Marshal() ([]byte, error) }); ok {
			x.format = "itemsMessage"
		}
		return "[]" + t.typeText(typ.Elem(), x)
	case reflect.Map:
		if typ.Key().Kind() != reflect.String {
			check(fmt.Errorf("map key %s", typ))
		}
		return "{}" + t.typeText(typ.Elem(), x)
	case reflect.String:
		if values, ok := t.enums[typ.PkgPath()+"."+typ.Name()]; ok {
			x.enums = values
		}
		return "string"
	case reflect.Int:
		return "int64"
	case reflect.Bool, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return typ.Kind().String()
	case reflect.Interface:
		return "any"
	}
	check(fmt.Errorf("no form for %s", typ))
	return ""
}

// goType is a type's name in Go if a part of it, not a struct, has a name of its own.
func goType(typ reflect.Type) string {
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	named := func(t reflect.Type) bool { return t.PkgPath() != "" && t.Kind() != reflect.Struct }
	for part := typ; ; part = part.Elem() {
		_, scalar := scalars[part]
		_, free := anyJSON[part]
		switch {
		case free && part != typ && part.Name() == "JSON":
			return typ.String()
		case scalar || free:
			return ""
		case named(part), part.Kind() == reflect.Map && named(part.Key()):
			return typ.String()
		case part.Kind() != reflect.Slice && part.Kind() != reflect.Map:
			return ""
		}
	}
}

func (t *Table) text() string {
	gvks := map[reflect.Type][]string{}
	for gvk, typ := range t.kinds {
		gvks[typ] = append(gvks[typ], gvk.GroupVersion().String()+","+gvk.Kind)
	}
	blocks := []string{}
	for typ, fields := range t.types {
		var b strings.Builder
		fmt.Fprintf(&b, "type %s %s", modelName(typ), protoName(typ))
		if m := t.openapi[modelName(typ)].MapType; m != "" {
			fmt.Fprintf(&b, " map=%s", m)
		}
		slices.Sort(gvks[typ])
		for _, gvk := range gvks[typ] {
			fmt.Fprintf(&b, " kind=%s", gvk)
		}
		b.WriteString("\n")
		for _, f := range fields {
			b.WriteString(" " + f.text() + "\n")
		}
		blocks = append(blocks, b.String())
	}
	slices.Sort(blocks)
	return "# Facts of every type of a body, written by tools/schema; not to be edited.\n" +
		"# type OPENAPI-NAME PROTOBUF-NAME … / FIELD TYPE NUMBER[/NUMBER-OF-INLINED-MESSAGE:TYPE] …\n" +
		"# The protobuf wire type follows from the type (checked): varint, fixed64 for float64, else length-delimited; nothing is packed.\n" +
		strings.Join(blocks, "")
}

func (f field) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %d", f.name, f.typ, f.number)
	if f.inlineNumber != 0 {
		fmt.Fprintf(&b, "/%d:%s", f.inlineNumber, f.inlineType)
	}
	flag := func(on bool, text string) {
		if on {
			b.WriteString(" " + text)
		}
	}
	list := func(values []string) string { return strings.Join(values, ",") }
	fmt.Fprintf(&b, " at=%d", f.place)
	flag(f.pointer, "ptr")
	flag(f.omitEmpty, "omitempty")
	flag(f.omitZero, "omitzero")
	flag(f.required, "required")
	flag(f.listType != "", "list="+f.listType)
	flag(len(f.listKeys) > 0, "keys="+list(f.listKeys))
	flag(f.mapType != "", "map="+f.mapType)
	flag(f.strategy != "", "patch="+f.strategy)
	flag(f.mergeKey != "", "mergekey="+f.mergeKey)
	flag(f.format != "", "format="+f.format)
	flag(f.def != "", "default="+f.def)
	flag(len(f.enums) > 0, "enum="+list(f.enums))
	flag(f.goType != "", "go="+f.goType)
	flag(f.embedded != "", "embedded="+f.embedded)
	flag(f.elements != "", "elements="+f.elements)
	return b.String()
}
