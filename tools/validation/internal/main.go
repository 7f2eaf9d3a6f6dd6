// Writes which fields upstream's internal types have, in order, and where the published form has each: messages show
// structs in the internal form.
//
//	type NAME / KEY SOURCE TYPE [omitempty]
//
// KEY is the name that is shown. SOURCE is the published field; - has none.
package main

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/apis/admissionregistration"
	"k8s.io/kubernetes/pkg/apis/apps"
	"k8s.io/kubernetes/pkg/apis/authorization"
	"k8s.io/kubernetes/pkg/apis/autoscaling"
	"k8s.io/kubernetes/pkg/apis/batch"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/networking"
	"k8s.io/kubernetes/pkg/apis/policy"
	"k8s.io/kubernetes/pkg/apis/rbac"
	resourceapi "k8s.io/kubernetes/pkg/apis/resource"
	"k8s.io/kubernetes/pkg/apis/storage"
)

var roots = [][2]any{
	{apiextensions.CustomResourceDefinitionVersion{}, apiextensionsv1.CustomResourceDefinitionVersion{}},
	{apps.DaemonSetUpdateStrategy{}, appsv1.DaemonSetUpdateStrategy{}},
	{apps.DeploymentSpec{}, appsv1.DeploymentSpec{}},
	{apps.StatefulSetSpec{}, appsv1.StatefulSetSpec{}},
	{authorization.NonResourceAttributes{}, authorizationv1.NonResourceAttributes{}},
	{autoscaling.HorizontalPodAutoscalerBehavior{}, autoscalingv2.HorizontalPodAutoscalerBehavior{}},
	{batch.JobSpec{}, batchv1.JobSpec{}},
	{batch.UncountedTerminatedPods{}, batchv1.UncountedTerminatedPods{}},
	{core.Event{}, corev1.Event{}},
	{core.PersistentVolumeSource{}, corev1.PersistentVolumeSource{}},
	{core.PersistentVolumeSpec{}, corev1.PersistentVolumeSpec{}},
	{core.ResourceQuotaSpec{}, corev1.ResourceQuotaSpec{}},
	{core.Taint{}, corev1.Taint{}},
	{admissionregistration.AuditAnnotation{}, admissionregistrationv1.AuditAnnotation{}},
	{networking.ServiceCIDRSpec{}, networkingv1.ServiceCIDRSpec{}},
	{metav1.ObjectMeta{}, metav1.ObjectMeta{}},
	{policy.PodDisruptionBudgetSpec{}, policyv1.PodDisruptionBudgetSpec{}},
	{rbac.RoleBinding{}, rbacv1.RoleBinding{}},
	{resourceapi.ResourceClaim{}, resourcev1.ResourceClaim{}},
	{resourceapi.ResourceClaimTemplate{}, resourcev1.ResourceClaimTemplate{}},
	{storage.CSINodeDriver{}, storagev1.CSINodeDriver{}},
}

var scalars = map[reflect.Type]string{
	reflect.TypeOf(resource.Quantity{}):    "quantity",
	reflect.TypeOf(intstr.IntOrString{}):   "int",
	reflect.TypeOf(metav1.Time{}):          "time",
	reflect.TypeOf(metav1.MicroTime{}):     "time",
	reflect.TypeOf(metav1.FieldsV1{}):      "any",
	reflect.TypeOf(runtime.RawExtension{}): "any",
}

type table map[string]string

func main() {
	out := flag.String("out", "", "file of the table")
	flag.Parse()
	t := table{}
	for _, r := range roots {
		t.walk(reflect.TypeOf(r[0]), reflect.TypeOf(r[1]))
	}
	names := []string{}
	for name := range t {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	b.WriteString("# Upstream's internal types, written by tools/validation/internal; not to be edited.\n")
	for _, name := range names {
		b.WriteString("type " + name + "\n" + t[name])
	}
	if err := os.WriteFile(*out, []byte(b.String()), 0o644); err != nil {
		panic(err)
	}
	fmt.Printf("%s: %d types, %d bytes\n", *out, len(names), b.Len())
}

// bare takes pointers, lists and maps off a type.
func bare(t reflect.Type) reflect.Type {
	for slices.Contains([]reflect.Kind{reflect.Pointer, reflect.Slice, reflect.Map}, t.Kind()) {
		t = t.Elem()
	}
	return t
}

func (t table) walk(in, public reflect.Type) {
	if _, ok := t[in.String()]; ok {
		return
	}
	t[in.String()] = ""
	var b strings.Builder
	t.fields(&b, in, public)
	t[in.String()] = b.String()
}

func jsonName(of reflect.Type, goName string) (string, reflect.Type) {
	if of == nil || of.Kind() != reflect.Struct {
		return "", nil
	}
	f, ok := of.FieldByName(goName)
	if !ok {
		return "", nil
	}
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name, f.Type
}

func (t table) fields(b *strings.Builder, in, public reflect.Type) {
	for i := range in.NumField() {
		f := in.Field(i)
		key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		// Conversion leaves nothing in it.
		if key == "-" || !f.IsExported() || f.Type == reflect.TypeOf(metav1.TypeMeta{}) {
			continue
		}
		if f.Anonymous && key == "" {
			inner := public
			if p, ok := public.FieldByName(f.Name); ok && p.Type.Kind() == reflect.Struct {
				inner = p.Type
				if name, _, _ := strings.Cut(p.Tag.Get("json"), ","); name != "" {
					// What is inline within stands in a field of its own without.
					var x strings.Builder
					t.fields(&x, f.Type, inner)
					for _, line := range strings.SplitAfter(x.String(), "\n") {
						if parts := strings.SplitN(strings.TrimPrefix(line, " "), " ", 3); len(parts) == 3 {
							b.WriteString(" " + parts[0] + " " + name + "." + parts[1] + " " + parts[2])
						}
					}
					continue
				}
			}
			t.fields(b, f.Type, inner)
			continue
		}
		if key == "" {
			key = f.Name
		}
		source, typ := jsonName(public, f.Name)
		if source == "" {
			source = "-"
		}
		fmt.Fprintf(b, " %s %s %s", key, source, t.text(f.Type, typ))
		if strings.Contains(options, "omitempty") {
			b.WriteString(" omitempty")
		}
		b.WriteString("\n")
	}
}

func (t table) text(in, public reflect.Type) string {
	if s, ok := scalars[in]; ok {
		return s
	}
	inner := func() string {
		if public != nil && public.Kind() == in.Kind() {
			return t.text(in.Elem(), public.Elem())
		}
		return t.text(in.Elem(), public)
	}
	switch in.Kind() {
	case reflect.Pointer:
		return "*" + inner()
	case reflect.Slice:
		if in.Elem().Kind() == reflect.Uint8 {
			return "*string"
		}
		return "[]" + inner()
	case reflect.Map:
		return "{}" + inner()
	case reflect.Struct:
		if public != nil {
			public = bare(public)
		}
		t.walk(in, public)
		return in.String()
	case reflect.String, reflect.Bool:
		return in.Kind().String()
	case reflect.Interface:
		return "any"
	}
	return "int"
}
