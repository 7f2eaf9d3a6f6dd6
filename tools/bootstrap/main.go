// Writes the objects that every cluster starts with, as the published modules define them: RBAC policy, priority levels
// and flow schemas, system priority classes. One JSON object a line, sorted, for the API server to reconcile at start.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	flowcontrol "k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	schedulingv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// order in which the API server creates them: levels before schemas, roles before bindings.
var order = []string{"PriorityLevelConfiguration", "FlowSchema", "PriorityClass", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}

type line struct {
	rank           int
	namespace, key string
	text           []byte
}

var lines []line

func add(apiVersion, kind string, meta *metav1.ObjectMeta, obj any) {
	meta.CreationTimestamp = metav1.Time{}
	text, err := json.Marshal(obj)
	check(err)
	var m map[string]any
	check(json.Unmarshal(text, &m))
	m["apiVersion"], m["kind"] = apiVersion, kind
	delete(m, "status")
	text, err = json.Marshal(m) // map keys come out sorted
	check(err)
	for rank, k := range order {
		if k == kind {
			lines = append(lines, line{rank, meta.Namespace, meta.Name, text})
		}
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	const rbac = "rbac.authorization.k8s.io/v1"
	for _, r := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		add(rbac, "ClusterRole", &r.ObjectMeta, &r)
	}
	for _, b := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		add(rbac, "ClusterRoleBinding", &b.ObjectMeta, &b)
	}
	for namespace, roles := range bootstrappolicy.NamespaceRoles() {
		for _, r := range roles {
			r.Namespace = namespace
			add(rbac, "Role", &r.ObjectMeta, &r)
		}
	}
	for namespace, bindings := range bootstrappolicy.NamespaceRoleBindings() {
		for _, b := range bindings {
			b.Namespace = namespace
			add(rbac, "RoleBinding", &b.ObjectMeta, &b)
		}
	}
	for _, p := range append(flowcontrol.MandatoryPriorityLevelConfigurations, flowcontrol.SuggestedPriorityLevelConfigurations...) {
		add("flowcontrol.apiserver.k8s.io/v1", "PriorityLevelConfiguration", &p.ObjectMeta, p)
	}
	for _, f := range append(flowcontrol.MandatoryFlowSchemas, flowcontrol.SuggestedFlowSchemas...) {
		add("flowcontrol.apiserver.k8s.io/v1", "FlowSchema", &f.ObjectMeta, f)
	}
	for _, c := range schedulingv1.SystemPriorityClasses() {
		add("scheduling.k8s.io/v1", "PriorityClass", &c.ObjectMeta, c)
	}
	sort.Slice(lines, func(i, j int) bool {
		a, b := lines[i], lines[j]
		if a.rank != b.rank {
			return a.rank < b.rank
		}
		if a.namespace != b.namespace {
			return a.namespace < b.namespace
		}
		return a.key < b.key
	})
	for _, l := range lines {
		fmt.Println(string(l.text))
	}
}
