package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"strings"
	"time"

	capi "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/kubernetes/pkg/apis/certificates"
	"k8s.io/kubernetes/pkg/apis/certificates/validation"
	"k8s.io/kubernetes/pkg/controller/certificates/authority"
)

// Request is a certificate request and what upstream says of it.
type Request struct {
	Name string
	PEM  string
	// Why the API server refuses it at creation, or "".
	Created string
	// What was read, if anything.
	Subject *Subject `json:",omitempty"`
	DNS     []string `json:",omitempty"`
	Emails  []string `json:",omitempty"`
	IPs     []string `json:",omitempty"`
	URIs    []string `json:",omitempty"`
	// Why the kubelets' signers refuse it, or "".
	KubeletClient, KubeletServing string
	// What kube-controller-manager's authority makes of it.
	Issued *Issued `json:",omitempty"`
	// Why it makes nothing of it.
	IssueError string `json:",omitempty"`
}

// Subject is what a name means.
type Subject struct {
	CommonName, SerialNumber                      string
	Country, Organization, OrganizationalUnit     []string
	Locality, Province, StreetAddress, PostalCode []string
}

// Issued is a certificate without its number, times and signature.
type Issued struct {
	Subject, Key []byte
	Extensions   []Extension
}

// Extension is one extension of a certificate.
type Extension struct {
	ID       string
	Critical bool
	Value    []byte
}

var ca = &authority.CertificateAuthority{PrivateKey: otherP256, Certificate: func() *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(100, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, otherP256.Public(), otherP256))
	return must(x509.ParseCertificate(der))
}()}

var (
	clientUsages  = []string{"digital signature", "client auth"}
	servingUsages = []string{"digital signature", "server auth"}
)

func judge(name, text string) Request {
	out := Request{Name: name, PEM: text}
	object := &certificates.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "r"},
		Spec: certificates.CertificateSigningRequestSpec{
			Request: []byte(text), SignerName: capi.KubeAPIServerClientSignerName,
			Usages: []certificates.KeyUsage{certificates.UsageClientAuth},
		},
	}
	for _, err := range validation.ValidateCertificateSigningRequestCreate(object) {
		out.Created += err.Detail
	}
	read, err := certificates.ParseCSR([]byte(text))
	if err != nil {
		return out
	}
	s := read.Subject
	out.Subject = &Subject{s.CommonName, s.SerialNumber, s.Country, s.Organization, s.OrganizationalUnit,
		s.Locality, s.Province, s.StreetAddress, s.PostalCode}
	out.DNS, out.Emails = read.DNSNames, read.EmailAddresses
	for _, ip := range read.IPAddresses {
		out.IPs = append(out.IPs, ip.String())
	}
	for _, uri := range read.URIs {
		out.URIs = append(out.URIs, uri.String())
	}
	out.KubeletClient = message(certificates.ValidateKubeletClientCSR(read, sets.NewString(clientUsages...)))
	out.KubeletServing = message(certificates.ValidateKubeletServingCSR(read, sets.NewString(servingUsages...)))
	der, err := ca.Sign(read.Raw, authority.PermissiveSigningPolicy{
		TTL: time.Hour, Backdate: 5 * time.Minute, Short: 8 * time.Hour,
		Usages: []capi.KeyUsage{capi.UsageClientAuth, capi.UsageDigitalSignature, capi.UsageKeyEncipherment, capi.UsageDecipherOnly, capi.UsageServerAuth},
	})
	if err != nil {
		out.IssueError = err.Error()
		return out
	}
	cert := must(x509.ParseCertificate(der))
	out.Issued = &Issued{Subject: cert.RawSubject, Key: cert.RawSubjectPublicKeyInfo}
	for _, e := range cert.Extensions {
		out.Issued.Extensions = append(out.Issued.Extensions, Extension{e.Id.String(), e.Critical, e.Value})
	}
	return out
}

const label = "CERTIFICATE REQUEST"

func ordinary(name string, template x509.CertificateRequest, key crypto.Signer) Request {
	return judge(name, pemOf(label, must(x509.CreateCertificateRequest(rand.Reader, &template, key))))
}

// attribute is one of a name; tag 0 leaves the type of string to Go.
type attribute struct {
	id    asn1.ObjectIdentifier
	tag   int
	value string
}

var (
	oidCN = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidO  = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidOU = asn1.ObjectIdentifier{2, 5, 4, 11}
	oidDC = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}
)

// name encodes attributes, each in a set of its own, or all in one.
func name(together bool, list ...attribute) []byte {
	var sets [][]byte
	var members []byte
	for _, a := range list {
		value := asn1.RawValue{Tag: a.tag, Bytes: []byte(a.value)}
		member := must(asn1.Marshal(struct {
			ID    asn1.ObjectIdentifier
			Value asn1.RawValue
		}{a.id, value}))
		members = append(members, member...)
		sets = append(sets, must(asn1.Marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: member})))
	}
	if together {
		sets = [][]byte{must(asn1.Marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: members}))}
	}
	var all []byte
	for _, set := range sets {
		all = append(all, set...)
	}
	return must(asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: all}))
}

func subject(id string, raw []byte) Request {
	return ordinary(id, x509.CertificateRequest{RawSubject: raw}, p256)
}

// raw is a request put together by hand.
type raw struct {
	Info      asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

type info struct {
	Version    int
	Subject    asn1.RawValue
	Key        asn1.RawValue
	Attributes []asn1.RawValue `asn1:"tag:0"`
}

type keyInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	Key       asn1.BitString
}

func hand(id string, key []byte, algorithm pkix.AlgorithmIdentifier, sign func([]byte) []byte, attributes ...asn1.RawValue) Request {
	body := must(asn1.Marshal(info{
		Subject:    asn1.RawValue{FullBytes: name(false, attribute{oidCN, asn1.TagUTF8String, "u"})},
		Key:        asn1.RawValue{FullBytes: key},
		Attributes: attributes,
	}))
	signature := sign(body)
	der := must(asn1.Marshal(raw{asn1.RawValue{FullBytes: body}, algorithm, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}}))
	return judge(id, pemOf(label, der))
}

func byP256(body []byte) []byte {
	hash := sha256.Sum256(body)
	return must(p256.Sign(rand.Reader, hash[:], crypto.SHA256))
}

func extensionRequest(extensions ...pkix.Extension) asn1.RawValue {
	return asn1.RawValue{FullBytes: must(asn1.Marshal(struct {
		ID     asn1.ObjectIdentifier
		Values [][]pkix.Extension `asn1:"set"`
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}, [][]pkix.Extension{extensions}}))}
}

func names(values ...asn1.RawValue) pkix.Extension {
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: must(asn1.Marshal(values))}
}

func requests() []Request {
	utf8 := asn1.TagUTF8String
	node := []attribute{{oidO, utf8, "system:nodes"}, {oidCN, utf8, "system:node:x"}}
	with := func(more ...attribute) []attribute { return append(append([]attribute{}, node...), more...) }
	simple := x509.CertificateRequest{Subject: pkix.Name{CommonName: "u", Organization: []string{"dev"}}}
	signed := func(algorithm x509.SignatureAlgorithm) x509.CertificateRequest {
		t := simple
		t.SignatureAlgorithm = algorithm
		return t
	}
	spki := func(key any) []byte { return must(x509.MarshalPKIXPublicKey(key)) }
	ecdsaSHA256 := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}
	rsaAlgorithm := func(last int) pkix.AlgorithmIdentifier {
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, last}, Parameters: asn1.NullRawValue}
	}
	pkcs1 := asn1.BitString{Bytes: x509.MarshalPKCS1PublicKey(&rsa2048.PublicKey), BitLength: 8 * len(x509.MarshalPKCS1PublicKey(&rsa2048.PublicKey))}
	pssKey := must(asn1.Marshal(keyInfo{pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}}, pkcs1}))
	noNull := must(asn1.Marshal(keyInfo{pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}}, pkcs1}))
	offCurve := spki(&p256.PublicKey)
	offCurve[len(offCurve)-1] ^= 1
	k256 := must(asn1.Marshal(keyInfo{
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1},
			Parameters: asn1.RawValue{FullBytes: must(asn1.Marshal(asn1.ObjectIdentifier{1, 3, 132, 0, 10}))}},
		asn1.BitString{Bytes: make([]byte, 65), BitLength: 520},
	}))
	san := func(tag int, value string) asn1.RawValue {
		return asn1.RawValue{Class: 2, Tag: tag, Bytes: []byte(value)}
	}
	sans := func(id string, values ...asn1.RawValue) Request {
		return hand(id, spki(&p256.PublicKey), ecdsaSHA256, byP256, extensionRequest(names(values...)))
	}
	good := judge("plain", pemOf(label, must(x509.CreateCertificateRequest(rand.Reader, &simple, p256))))
	ip := func(text string) net.IP { return net.ParseIP(text) }
	nodeName := pkix.Name{CommonName: "system:node:x", Organization: []string{"system:nodes"}}
	return []Request{
		good,
		// Whose name is it?
		subject("node", name(false, node...)),
		subject("two common names, the last one more", name(false, with(attribute{oidCN, utf8, "system:kube-controller-manager"})...)),
		subject("two common names, the first one more", name(false, attribute{oidCN, utf8, "system:kube-controller-manager"}, node[0], node[1])),
		subject("two common names in one set", name(true, with(attribute{oidCN, utf8, "system:kube-controller-manager"})...)),
		subject("two organizations", name(false, with(attribute{oidO, utf8, "system:masters"})...)),
		subject("organization twice", name(false, with(attribute{oidO, utf8, "system:nodes"})...)),
		subject("two organizations in one set", name(true, with(attribute{oidO, utf8, "system:masters"})...)),
		subject("a node with a unit", name(false, with(attribute{oidOU, utf8, "system:masters"})...)),
		subject("common name as a number after text", name(false, with(attribute{oidCN, asn1.TagInteger, "\x07"})...)),
		subject("common name as a number", name(false, node[0], attribute{oidCN, asn1.TagInteger, "\x07"})),
		subject("organization as octets", name(false, with(attribute{oidO, asn1.TagOctetString, "system:masters"})...)),
		subject("common name as BMPString", name(false, node[0], attribute{oidCN, asn1.TagBMPString, "\x00s\x00y\x00s\x00t\x00e\x00m\x00:\x00n\x00o\x00d\x00e\x00:\x00x"})),
		subject("common name as T61String", name(false, node[0], attribute{oidCN, asn1.TagT61String, "system:node:\xe9"})),
		subject("common name as IA5String", name(false, node[0], attribute{oidCN, asn1.TagIA5String, "system:node:x"})),
		subject("common name of an unprintable PrintableString", name(false, node[0], attribute{oidCN, asn1.TagPrintableString, "system:node:x@y"})),
		subject("common name with a zero", name(false, node[0], attribute{oidCN, utf8, "system:node:x\x00y"})),
		subject("common name of no UTF-8", name(false, node[0], attribute{oidCN, utf8, "system:node:\xff"})),
		subject("empty common name at the end", name(false, with(attribute{oidCN, utf8, ""})...)),
		subject("no subject", name(false)),
		subject("masters", name(false, attribute{oidO, utf8, "system:masters"}, attribute{oidCN, utf8, "u"})),
		subject("an unknown attribute", name(false, attribute{oidDC, asn1.TagIA5String, "example"}, node[0], node[1])),
		ordinary("everything in a subject", x509.CertificateRequest{Subject: pkix.Name{
			CommonName: "u*", SerialNumber: "7", Organization: []string{"ops", "dev", "äb"}, OrganizationalUnit: []string{"two", "one"},
			Country: []string{"DE"}, Locality: []string{"L"}, Province: []string{"P"}, StreetAddress: []string{"S"}, PostalCode: []string{"1"},
		}}, p256),
		// Other names.
		ordinary("a kubelet's serving certificate", x509.CertificateRequest{Subject: nodeName, DNSNames: []string{"x"}, IPAddresses: []net.IP{ip("10.0.0.1"), ip("fd00::1")}}, p256),
		ordinary("a kubelet's with an address for mail", x509.CertificateRequest{Subject: nodeName, DNSNames: []string{"x"}, EmailAddresses: []string{"a@b"}}, p256),
		sans("names of every kind", san(2, "a.example"), san(2, "*.b"), san(1, "m@a.example"), san(7, "\x0a\x00\x00\x01"), san(6, "spiffe://td/ns/a")),
		sans("only a URI", san(6, "https://a.example:443/x?y=z")),
		sans("a name of another kind", san(8, "\x2a\x03")),
		sans("an address of three bytes", san(7, "abc")),
		sans("a name of no ASCII", san(2, "\xff")),
		sans("a URI without a scheme", san(6, ":x")),
		sans("a URI of a bad host", san(6, "https://a..b/")),
		sans("a mapped address", san(7, string(ip("10.0.0.1").To16()))),
		hand("asks for an authority", spki(&p256.PublicKey), ecdsaSHA256, byP256, extensionRequest(
			pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}},
			pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 1, 6}})),
		hand("names twice", spki(&p256.PublicKey), ecdsaSHA256, byP256, extensionRequest(names(san(2, "a")), names(san(2, "b")))),
		hand("names in two attributes", spki(&p256.PublicKey), ecdsaSHA256, byP256, extensionRequest(names(san(2, "a"))), extensionRequest(names(san(2, "b")))),
		hand("another attribute", spki(&p256.PublicKey), ecdsaSHA256, byP256, asn1.RawValue{FullBytes: must(asn1.Marshal(struct {
			ID     asn1.ObjectIdentifier
			Values []string `asn1:"set"`
		}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, []string{"password"}}))}),
		// Keys and signatures.
		ordinary("RSA 1024", simple, rsa1024), ordinary("RSA 2048", simple, rsa2048), ordinary("RSA 4096", simple, rsa4096),
		ordinary("RSA SHA-384", signed(x509.SHA384WithRSA), rsa2048), ordinary("RSA SHA-512", signed(x509.SHA512WithRSA), rsa2048),
		ordinary("RSA 1024 SHA-384", signed(x509.SHA384WithRSA), rsa1024),
		ordinary("RSA signed by PSS", signed(x509.SHA256WithRSAPSS), rsa2048), ordinary("RSA 1024 signed by PSS", signed(x509.SHA384WithRSAPSS), rsa1024),
		ordinary("P-224", simple, p224), ordinary("P-256", simple, p256), ordinary("P-384", simple, p384), ordinary("P-521", simple, p521),
		ordinary("P-256 SHA-512", signed(x509.ECDSAWithSHA512), p256), ordinary("P-256 SHA-384", signed(x509.ECDSAWithSHA384), p256),
		ordinary("P-384 SHA-256", signed(x509.ECDSAWithSHA256), p384), ordinary("P-521 SHA-256", signed(x509.ECDSAWithSHA256), p521),
		ordinary("Ed25519", simple, ed),
		hand("RSA SHA-1", spki(&rsa2048.PublicKey), rsaAlgorithm(5), func(body []byte) []byte {
			hash := sha1.Sum(body)
			return must(rsa.SignPKCS1v15(nil, rsa2048, crypto.SHA1, hash[:]))
		}),
		hand("ECDSA SHA-1", spki(&p256.PublicKey), pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}}, func(body []byte) []byte {
			hash := sha1.Sum(body)
			return must(p256.Sign(rand.Reader, hash[:], crypto.SHA1))
		}),
		hand("RSA MD5", spki(&rsa2048.PublicKey), rsaAlgorithm(4), func([]byte) []byte { return make([]byte, 256) }),
		hand("a key of RSA-PSS", pssKey, rsaAlgorithm(11), func(body []byte) []byte {
			hash := sha256.Sum256(body)
			return must(rsa.SignPKCS1v15(nil, rsa2048, crypto.SHA256, hash[:]))
		}),
		hand("RSA without NULL", noNull, rsaAlgorithm(11), func([]byte) []byte { return make([]byte, 256) }),
		hand("a point beside the curve", offCurve, ecdsaSHA256, byP256),
		hand("an unknown curve", k256, ecdsaSHA256, byP256),
		hand("an unknown signature", spki(&p256.PublicKey), pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 3}}, byP256),
		hand("signed by another kind of key", spki(&p256.PublicKey), rsaAlgorithm(11), byP256),
		hand("RSA said to be ECDSA", spki(&rsa2048.PublicKey), ecdsaSHA256, byP256),
		hand("somebody else's key", spki(&otherP256.PublicKey), ecdsaSHA256, byP256),
		// Text around it.
		judge("nothing", ""), judge("no PEM", "nonsense"),
		judge("another label", strings.ReplaceAll(good.PEM, label, "NEW CERTIFICATE REQUEST")),
		judge("a certificate first", pemOf("CERTIFICATE", ca.Certificate.Raw)+good.PEM),
		judge("text around", "about\n"+good.PEM+"after"),
		judge("two requests", good.PEM+ordinary("", x509.CertificateRequest{Subject: nodeName}, p384).PEM),
		judge("headers", strings.Replace(good.PEM, "-----\n", "-----\nA: b\n\n", 1)),
		judge("bytes after it", pemOf(label, append(must(x509.CreateCertificateRequest(rand.Reader, &simple, p256)), 0))),
		judge("cut short", pemOf(label, must(x509.CreateCertificateRequest(rand.Reader, &simple, p256))[:100])),
		judge("no request", pemOf(label, ca.Certificate.Raw)),
	}
}
