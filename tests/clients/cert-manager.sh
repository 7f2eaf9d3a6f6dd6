#!/bin/bash
# cert-manager.sh: cert-manager by its own chart, in pods with the rights that gives them: controller, webhook, cainjector; self-signed and CA issuers, what they issue, Ingresses, requests of the server's own kind.
# needs: helm cert-manager
. "$(dirname "$0")/lib.sh"
FROM=$(source_of cert-manager)
set_images=()
for part in controller webhook cainjector; do
  image example.local/cert-manager-$part:1 "[\"/bin/cert-manager\",\"$part\"]" "$CLIENTS/cert-manager"
  at=$part.image; [ $part != controller ] || at=image
  set_images+=(--set-string "$at.repository=example.local/cert-manager-$part,$at.tag=1")
done
cluster --disable metrics
check "its chart is installed, and gets ready" c helm install cert-manager "$FROM/deploy/charts/cert-manager" -n cert-manager --create-namespace --set crds.enabled=true,startupapicheck.enabled=false "${set_images[@]}" --wait --timeout 110s || exit 1
check "cainjector puts the webhook's authority in" until_is "1 1" bash -c "for w in validating mutating; do nsenter --net=/run/netns/$CLUSTER $BIN/kubectl get \${w}webhookconfiguration cert-manager-webhook -o json | jq '[.webhooks[] | select(.clientConfig.caBundle)] | length'; done | xargs"
issuer() { printf 'apiVersion: cert-manager.io/v1\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec: %s\n' "$@" | k apply -f -; }
certificate() { printf 'apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {name: %s, namespace: %s}\nspec: {secretName: %s, %s}\n' "$1" "$2" "$1" "$3" | k apply -f -; }
ready() { k -n "$2" wait --for=condition=Ready --timeout=60s "$1"; }
pem() { k -n "$2" get secret "$1" -o "jsonpath={.data.$3}" | base64 -d; }
k create ns shop >/dev/null
check "a self-signed issuer of the cluster" eval 'soon issuer ClusterIssuer selfsigned "" "{selfSigned: {}}" && k wait --for=condition=Ready clusterissuer/selfsigned --timeout=60s'
check "what is no issuer is refused by its webhook" refused 'admission webhook "webhook.cert-manager.io" denied the request.*at least one issuer must be configured' issuer Issuer none shop '{}'
check "and what is no certificate" refused 'spec.duration|commonName' certificate wrong shop 'duration: 1m, issuerRef: {name: selfsigned, kind: ClusterIssuer}, dnsNames: [a]'
check "an authority, of a P-521 key" eval 'certificate authority cert-manager "isCA: true, commonName: shop authority, privateKey: {algorithm: ECDSA, size: 521}, issuerRef: {name: selfsigned, kind: ClusterIssuer}" && ready certificate/authority cert-manager'
check "an issuer of it" eval 'issuer ClusterIssuer ca "" "{ca: {secretName: authority}}" && k wait --for=condition=Ready clusterissuer/ca --timeout=60s'
check "which issues" eval 'certificate web shop "dnsNames: [web.shop.svc, \"*.shop.example.com\"], ipAddresses: [10.0.0.1], duration: 2h, renewBefore: 1h, privateKey: {algorithm: RSA, size: 3072}, usages: [server auth, client auth], issuerRef: {name: ca, kind: ClusterIssuer}" && ready certificate/web shop'
check "what openssl verifies" eval 'pem web shop "tls\.crt" >"$WORK/web.crt"; pem web shop "ca\.crt" >"$WORK/ca.crt"; openssl verify -CAfile "$WORK/ca.crt" -verify_hostname web.shop.svc "$WORK/web.crt" && openssl verify -CAfile "$WORK/ca.crt" -verify_ip 10.0.0.1 "$WORK/web.crt"'
check "requests know who asked" has 'system:serviceaccount:cert-manager:cert-manager' k -n shop get certificaterequest -o 'jsonpath={.items[*].spec.username}'
check "whoever changes that is refused" refused 'immutable|denied' bash -c "r=\$(nsenter --net=/run/netns/$CLUSTER $BIN/kubectl -n shop get certificaterequest -o name | head -1); nsenter --net=/run/netns/$CLUSTER $BIN/kubectl -n shop patch \$r --type merge -p '{\"spec\":{\"username\":\"root\"}}'"
check "a secret that is deleted is issued again" eval 'u=$(k -n shop get secret web -o "jsonpath={.metadata.uid}"); k -n shop delete secret web; soon eval "[ \"\$(k -n shop get secret web -o \"jsonpath={.metadata.uid}\")\" != \"\" ] && [ \"\$(k -n shop get secret web -o \"jsonpath={.metadata.uid}\")\" != $u ]" && ready certificate/web shop'
check "renewed when its status asks for it" eval 'k -n shop get certificate web -o json | jq ".status.conditions += [{type: \"Issuing\", status: \"True\", reason: \"ManuallyTriggered\", message: \"by hand\", lastTransitionTime: (now|todate)}]" | k replace --subresource=status -f - && until_is 3 k -n shop get certificate web -o "jsonpath={.status.revision}"'
printf 'apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: web, namespace: shop, annotations: {cert-manager.io/cluster-issuer: ca}}\nspec: {tls: [{hosts: [shop.example.com], secretName: ingress}], rules: [{host: shop.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}\n' >"$WORK/ingress.yaml"
check "an Ingress that names an issuer gets its certificate" eval 'k apply -f "$WORK/ingress.yaml" && soon k -n shop get certificate ingress && ready certificate/ingress shop && has shop.example.com bash -c "nsenter --net=/run/netns/$CLUSTER $BIN/kubectl -n shop get secret ingress -o json | jq -r .data.\"\\\"tls.crt\\\"\" | base64 -d | openssl x509 -noout -ext subjectAltName"'
hook='apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: ours, annotations: {cert-manager.io/inject-ca-from: shop/web}}
webhooks: [{name: a.example.com, sideEffects: None, admissionReviewVersions: [v1], failurePolicy: Ignore, clientConfig: {service: {name: web, namespace: shop}}, rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [podtemplates]}]}]'
check "authorities go into the webhooks of others" eval 'k apply -f - <<<"$hook" && until_is "$(base64 -w0 "$WORK/ca.crt")" k get validatingwebhookconfiguration ours -o "jsonpath={.webhooks[0].clientConfig.caBundle}"'
openssl req -new -newkey rsa:2048 -nodes -keyout "$WORK/k" -out "$WORK/csr" -subj /CN=direct -addext subjectAltName=DNS:direct.shop 2>/dev/null
csr="apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: direct}
spec: {signerName: clusterissuers.cert-manager.io/ca, request: $(base64 -w0 "$WORK/csr"), usages: [digital signature, key encipherment, server auth]}"
check "CertificateSigningRequests to its issuer are signed once approved" eval 'k apply -f - <<<"$csr" && k certificate approve direct && soon has "^LS0t" k get csr direct -o "jsonpath={.status.certificate}" && openssl verify -CAfile "$WORK/ca.crt" <(k get csr direct -o "jsonpath={.status.certificate}" | base64 -d)'
check "events tell of it" has 'successfully issued' k -n shop get events --field-selector reason=Issuing -o 'jsonpath={.items[*].message}'
check "its leases are held" has 'cert-manager-cainjector-leader-election' k get lease -A -o name
check "uninstalled, with what it let be" eval 'c helm uninstall cert-manager -n cert-manager --wait && has certificates.cert-manager.io k get crd -o name && is web k -n shop get secret web -o "jsonpath={.metadata.name}"'
