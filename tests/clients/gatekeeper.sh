#!/bin/bash
# gatekeeper.sh: Gatekeeper as its own manifest deploys it, in pods: templates become kinds, constraints refuse, warn and audit, mutators change; policies it generates for the server itself.
# needs: gatekeeper
. "$(dirname "$0")/lib.sh"
FROM=$(source_of gatekeeper)
image "$(grep -o 'openpolicyagent/gatekeeper:.*' "$FROM/deploy/gatekeeper.yaml" | head -1)" '["/manager"]' "$CLIENTS/gatekeeper=/manager"
sed 's/imagePullPolicy: Always/imagePullPolicy: IfNotPresent/' "$FROM/deploy/gatekeeper.yaml" >"$WORK/gatekeeper.yaml"   # there is no registry here
cluster --disable metrics
check "its manifest is applied" k apply --server-side -f "$WORK/gatekeeper.yaml" || exit 1
k -n gatekeeper-system scale deploy gatekeeper-controller-manager --replicas=1 >/dev/null
check "its controllers get ready" eval 'k -n gatekeeper-system rollout status deploy/gatekeeper-audit --timeout=110s && k -n gatekeeper-system rollout status deploy/gatekeeper-controller-manager --timeout=110s' || exit 1
check "it puts its authority into its webhooks" until_is "true true" bash -c "for w in validating mutating; do nsenter --net=/run/netns/$CLUSTER $BIN/kubectl get \${w}webhookconfiguration gatekeeper-\$w-webhook-configuration -o json | jq '[.webhooks[].clientConfig.caBundle | length > 100] | all'; done | xargs"
cat >"$WORK/template.yaml" <<'Y'
apiVersion: templates.gatekeeper.sh/v1
kind: ConstraintTemplate
metadata: {name: needslabels}
spec:
  crd: {spec: {names: {kind: NeedsLabels}, validation: {openAPIV3Schema: {type: object, properties: {labels: {type: array, items: {type: string}}}}}}}
  targets:
  - target: admission.k8s.gatekeeper.sh
    rego: |
      package needslabels
      violation[{"msg": msg}] {
        wanted := input.parameters.labels[_]
        not input.review.object.metadata.labels[wanted]
        msg := sprintf("label %v is missing", [wanted])
      }
Y
constraint() { printf 'apiVersion: constraints.gatekeeper.sh/v1beta1\nkind: %s\nmetadata: {name: %s}\nspec:\n  enforcementAction: %s\n  match: {kinds: [{apiGroups: [""], kinds: [%s]}], namespaces: [shop]}\n  parameters: %s\n' "$@" | k apply -f -; }
k create ns shop >/dev/null; k -n shop create cm before >/dev/null
check "a template becomes a kind" eval 'k apply -f "$WORK/template.yaml" && until_is true k get constrainttemplate needslabels -o "jsonpath={.status.created}" && k wait --for=condition=Established crd/needslabels.constraints.gatekeeper.sh --timeout=30s'
check "a template that can be no kind is refused by its webhook" refused 'webhook "validation.gatekeeper.sh" denied the request: .*is not equal to the lowercase' bash -c "sed 's/needslabels/wrong/' $WORK/template.yaml | nsenter --net=/run/netns/$CLUSTER $BIN/kubectl apply -f -"
check "one that can't be compiled says so" eval 'sed "s/needslabels/wrong/; s/NeedsLabels/Wrong/; s/violation\[/violation[[[/" "$WORK/template.yaml" | k apply -f - && soon has rego_parse_error k get constrainttemplate wrong -o "jsonpath={.status.byPod[*].errors[*].message}{.status.byPod[*].errors[*].code}" && k delete constrainttemplate wrong --timeout=60s'
check "a constraint is a custom object of it" constraint NeedsLabels owner deny ConfigMap '{labels: [owner]}'
check "which its webhook enforces" until_is true bash -c "nsenter --net=/run/netns/$CLUSTER $BIN/kubectl get needslabels owner -o json | jq '[.status.byPod[] | select(.operations | index(\"webhook\")) | .enforced] | (length > 0) and all'"
check "what violates it is refused, in its words" refused 'admission webhook "validation.gatekeeper.sh" denied the request: \[owner\] label owner is missing' k -n shop create cm without
check "what keeps to it is accepted" eval 'printf "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: with, namespace: shop, labels: {owner: me}}\n" | k apply -f -'
check "other namespaces are free" k create cm without
check "so for a dry run" refused 'label owner is missing' k -n shop create cm without --dry-run=server
check "a warning is a warning" eval 'constraint NeedsLabels team warn Secret "{labels: [team]}" && soon has "Warning: .*label team is missing" k -n shop create secret generic s --dry-run=server'
check "what was there before is found by the audit" eval 'WITHIN=110 until_is 2 k get needslabels owner -o "jsonpath={.status.totalViolations}" && has before k get needslabels owner -o "jsonpath={.status.violations[*].name}"'
printf 'apiVersion: mutations.gatekeeper.sh/v1\nkind: AssignMetadata\nmetadata: {name: owner}\nspec: {match: {scope: Namespaced, kinds: [{apiGroups: ["*"], kinds: [ConfigMap]}]}, location: metadata.labels.owner, parameters: {assign: {value: nobody}}}\n' >"$WORK/mutator.yaml"
check "a mutator adds what is missing, before it is judged" eval 'k apply -f "$WORK/mutator.yaml" && soon k -n shop create cm mutated --dry-run=server && k -n shop create cm mutated && is nobody k -n shop get cm mutated -o "jsonpath={.metadata.labels.owner}"'
cat >"$WORK/cel.yaml" <<'Y'
apiVersion: templates.gatekeeper.sh/v1
kind: ConstraintTemplate
metadata: {name: fewports}
spec:
  crd: {spec: {names: {kind: FewPorts}, validation: {openAPIV3Schema: {type: object, properties: {most: {type: integer}}}}}}
  targets:
  - target: admission.k8s.gatekeeper.sh
    code:
    - engine: K8sNativeValidation
      source:
        generateVAP: true
        variables: [{name: ports, expression: "has(variables.anyObject.spec.ports) ? variables.anyObject.spec.ports.size() : 0"}]
        validations: [{expression: "variables.ports <= variables.params.most", messageExpression: "'at most ' + string(variables.params.most) + ' ports'"}]
Y
check "from CEL it makes policies of the server's own" eval 'k apply -f "$WORK/cel.yaml" && until_is true k get constrainttemplate fewports -o "jsonpath={.status.created}" && constraint FewPorts few deny Service "{most: 1}" && until_is gatekeeper-fewports k get validatingadmissionpolicy gatekeeper-fewports -o "jsonpath={.metadata.name}" && WITHIN=100 until_is gatekeeper-fewports-few k get validatingadmissionpolicybinding gatekeeper-fewports-few -o "jsonpath={.metadata.name}"'
check "which the server enforces" eval 'soon refused "ValidatingAdmissionPolicy .gatekeeper-fewports.*at most 1 ports" k -n shop create service clusterip two --tcp=1:1 --tcp=2:2 --dry-run=server && k -n shop create service clusterip one --tcp=1:1'
check "with the constraint and the mutator the rule goes" eval 'k delete -f "$WORK/mutator.yaml" && k delete needslabels owner && soon k -n shop create cm free --dry-run=server && k -n shop create cm free'
check "with the template its kind goes, and all of it" eval 'k delete constrainttemplate needslabels --timeout=60s && until_is "" k get crd needslabels.constraints.gatekeeper.sh --ignore-not-found -o name'
check "without its pods nothing is held up (failurePolicy Ignore)" eval 'k -n gatekeeper-system scale deploy --all --replicas=0 && k -n shop create cm later'
check "it is deleted as a whole" k delete -f "$WORK/gatekeeper.yaml" --timeout=110s
