package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"
)

// Judged is a chain of certificates, a bundle of trusted ones, and Go's verdict.
type Judged struct {
	Name string
	// PEM: what the peer shows, its own certificate first.
	Chain string
	// PEM: who is trusted.
	Roots string
	// The server that was to be reached; "" for a client's certificate.
	Host string `json:",omitempty"`
	// Seconds since 1970.
	Now int64
	// "" or why it is refused.
	Verdict string
}

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// party is a certificate with its key.
type party struct {
	cert *x509.Certificate
	der  []byte
	key  crypto.Signer
}

type change func(*x509.Certificate)

var serial int64

func base(name string) *x509.Certificate {
	serial++
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0),
	}
}

func (p *party) signs(template *x509.Certificate, key crypto.Signer) *party {
	parent, signer := template, key
	if p != nil {
		parent, signer = p.cert, p.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", template.Subject, err))
	}
	return &party{cert: must(x509.ParseCertificate(der)), der: der, key: key}
}

func (p *party) ca(name string, changes ...change) *party {
	t := base(name)
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	for _, c := range changes {
		c(t)
	}
	return p.signs(t, must(ecdsa.GenerateKey(p256.Curve, rand.Reader)))
}

// leaf is a server's certificate for a.example and 10.0.0.1.
func (p *party) leaf(changes ...change) *party { return p.leafOf(p256, changes...) }

func (p *party) leafOf(key crypto.Signer, changes ...change) *party {
	t := base("leaf")
	t.DNSNames, t.IPAddresses = []string{"a.example"}, []net.IP{net.ParseIP("10.0.0.1").To4()}
	t.BasicConstraintsValid = true
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, c := range changes {
		c(t)
	}
	return p.signs(t, key)
}

func chain(parties ...*party) string {
	var all bytes.Buffer
	for _, p := range parties {
		all.WriteString(pemOf("CERTIFICATE", p.der))
	}
	return all.String()
}

func reach(id, host, shown, trusted string) Judged {
	out := Judged{Name: id, Chain: shown, Roots: trusted, Host: host, Now: now.Unix()}
	pool := func(text string) *x509.CertPool {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(text))
		return pool
	}
	usage := x509.ExtKeyUsageServerAuth
	if host == "" {
		usage = x509.ExtKeyUsageClientAuth
	}
	var certs []*x509.Certificate
	for rest := []byte(shown); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			out.Verdict = err.Error()
			return out
		}
		certs = append(certs, cert)
	}
	others := x509.NewCertPool()
	for _, c := range certs[1:] {
		others.AddCert(c)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		DNSName: host, Roots: pool(trusted), Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	out.Verdict = message(err)
	return out
}

func extra(critical bool, value []byte, id ...int) change {
	return func(t *x509.Certificate) {
		t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: id, Critical: critical, Value: value})
	}
}

func ends(at time.Time) change   { return func(t *x509.Certificate) { t.NotAfter = at } }
func begins(at time.Time) change { return func(t *x509.Certificate) { t.NotBefore = at } }
func dns(names ...string) change {
	return func(t *x509.Certificate) { t.DNSNames, t.IPAddresses = names, nil }
}
func usages(list ...x509.ExtKeyUsage) change {
	return func(t *x509.Certificate) { t.ExtKeyUsage = list }
}
func path(n int) change {
	return func(t *x509.Certificate) { t.MaxPathLen, t.MaxPathLenZero = n, n == 0 }
}
func isCA(t *x509.Certificate) {
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
}

type tbs struct {
	Version    int `asn1:"optional,explicit,default:0,tag:0"`
	Serial     asn1.RawValue
	Algorithm  pkix.AlgorithmIdentifier
	Issuer     asn1.RawValue
	Validity   validity
	Subject    asn1.RawValue
	Key        asn1.RawValue
	Extensions []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
}

type validity struct{ NotBefore, NotAfter time.Time }

type signedCert struct {
	TBS       asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

// byHand makes a certificate that Go wouldn't write, signed by the issuer's P-256 key.
func byHand(issuer *party, subject []byte, change func(*tbs, *pkix.AlgorithmIdentifier), sign func([]byte) []byte) string {
	ecdsaSHA256 := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}
	t := tbs{
		Serial: asn1.RawValue{FullBytes: must(asn1.Marshal(big.NewInt(77)))}, Algorithm: ecdsaSHA256,
		Issuer:   asn1.RawValue{FullBytes: issuer.cert.RawSubject},
		Validity: validity{now.AddDate(0, 0, -1), now.AddDate(0, 0, 1)},
		Subject:  asn1.RawValue{FullBytes: subject},
		Key:      asn1.RawValue{FullBytes: must(x509.MarshalPKIXPublicKey(p256.Public()))},
	}
	outer := ecdsaSHA256
	if change != nil {
		change(&t, &outer)
	}
	body := must(asn1.Marshal(t))
	if sign == nil {
		sign = func(body []byte) []byte {
			h := crypto.SHA256.New()
			h.Write(body)
			return must(issuer.key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256))
		}
	}
	signature := sign(body)
	return pemOf("CERTIFICATE", must(asn1.Marshal(signedCert{asn1.RawValue{FullBytes: body}, outer, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})))
}

func chains() []Judged {
	root := (*party)(nil).ca("root")
	other := (*party)(nil).ca("other")
	mid := root.ca("mid")
	var out []Judged
	for_ := func(host string) func(string, string, string) {
		return func(id, shown, trusted string) { out = append(out, reach(id, host, shown, trusted)) }
	}
	server, client := for_("a.example"), for_("")
	signedBy := func(id string, changes ...change) { server(id, chain(root.leaf(changes...)), chain(root)) }
	self := func(id string, key crypto.Signer, changes ...change) {
		p := (*party)(nil).leafOf(key, changes...)
		server(id, chain(p), chain(p))
	}

	// The usual, and the usual mistakes.
	signedBy("leaf of a root")
	server("leaf by an intermediate", chain(mid.leaf(), mid), chain(root))
	server("intermediate missing", chain(mid.leaf()), chain(root))
	server("intermediate trusted", chain(mid.leaf()), chain(mid))
	server("chain out of order", chain(mid.leaf(), root, mid), chain(root))
	server("with the root", chain(mid.leaf(), mid, root), chain(root))
	server("unknown authority", chain(other.leaf()), chain(root))
	server("an authority of the same name", chain((*party)(nil).ca("root").leaf()), chain(root))
	server("both of one name trusted", chain(root.leaf()), chain((*party)(nil).ca("root"), root))
	server("nobody trusted", chain(root.leaf()), "")
	server("trash in the bundle", chain(root.leaf()), "trash\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"+chain(root))
	server("a key in the bundle", chain(root.leaf()), pemOf("PRIVATE KEY", []byte{1})+chain(root))
	// What openssl req -x509 makes.
	self("self-signed with CA:TRUE", p256, isCA)
	self("self-signed with CA:FALSE", p256)
	self("self-signed RSA with CA:TRUE", rsa2048, isCA)
	self("self-signed without usages", p256, usages())
	selfOther := (*party)(nil).leafOf(p256, isCA)
	server("self-signed, another trusted", chain(selfOther), chain((*party)(nil).leafOf(p384, isCA)))
	server("self-signed, unknown", chain(selfOther), chain(root))
	signedBy("leaf with CA:TRUE", isCA)
	pinned := other.leaf()
	server("leaf itself trusted", chain(pinned), chain(pinned))
	server("leaf itself trusted among others", chain(pinned), chain(root, pinned))
	old := other.leaf(ends(now.AddDate(0, 0, -1)))
	server("trusted leaf has ended", chain(old), chain(old))
	server("trusted leaf of another use", chain(other.leaf(usages(x509.ExtKeyUsageClientAuth))), chain(root))
	pinnedClient := other.leaf(usages(x509.ExtKeyUsageClientAuth))
	server("trusted leaf for clients only", chain(pinnedClient), chain(pinnedClient))
	// Times.
	signedBy("ended", ends(now.AddDate(0, 0, -1)))
	signedBy("not begun", begins(now.AddDate(0, 0, 1)))
	signedBy("ends this second", ends(now))
	signedBy("ended a second ago", ends(now.Add(-time.Second)))
	signedBy("begins this second", begins(now))
	signedBy("never ends", ends(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)))
	endedRoot := (*party)(nil).ca("ended root", ends(now.AddDate(0, 0, -1)))
	server("the root has ended", chain(endedRoot.leaf()), chain(endedRoot))
	earlyRoot := (*party)(nil).ca("early root", begins(now.AddDate(0, 0, 1)))
	server("the root has not begun", chain(earlyRoot.leaf()), chain(earlyRoot))
	endedMid := root.ca("ended mid", ends(now.AddDate(0, 0, -1)))
	server("the intermediate has ended", chain(endedMid.leaf(), endedMid), chain(root))
	// Keys.
	for name, key := range map[string]crypto.Signer{"RSA 1024": rsa1024, "RSA 2048": rsa2048, "RSA 4096": rsa4096, "P-224": p224, "P-384": p384, "P-521": p521, "Ed25519": ed} {
		server("leaf of "+name, chain(root.leafOf(key)), chain(root))
		self("self-signed "+name, key, isCA)
		t := base(name + " root")
		isCA(t)
		p := (*party)(nil).signs(t, key)
		server("signed by "+name, chain(p.leaf()), chain(p))
	}
	for name, algorithm := range map[string]x509.SignatureAlgorithm{"SHA-384": x509.SHA384WithRSA, "SHA-512": x509.SHA512WithRSA, "PSS": x509.SHA256WithRSAPSS, "PSS SHA-512": x509.SHA512WithRSAPSS} {
		t := base("RSA root of " + name)
		isCA(t)
		p := (*party)(nil).signs(t, rsa2048)
		server("signed by RSA with "+name, chain(p.leaf(func(t *x509.Certificate) { t.SignatureAlgorithm = algorithm })), chain(p))
	}
	signedBy("signed by P-256 with SHA-512", func(t *x509.Certificate) { t.SignatureAlgorithm = x509.ECDSAWithSHA512 })
	// Signatures that are not good.
	dnsName := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: must(asn1.Marshal([]asn1.RawValue{{Class: 2, Tag: 2, Bytes: []byte("a.example")}}))}
	v3 := func(more ...pkix.Extension) func(*tbs, *pkix.AlgorithmIdentifier) {
		return func(t *tbs, _ *pkix.AlgorithmIdentifier) {
			t.Version, t.Extensions = 2, append([]pkix.Extension{dnsName}, more...)
		}
	}
	leafName := name(false, attribute{oidCN, asn1.TagUTF8String, "leaf"})
	algorithm := func(id ...int) func(*tbs, *pkix.AlgorithmIdentifier) {
		return func(t *tbs, outer *pkix.AlgorithmIdentifier) {
			t.Version, t.Extensions = 2, []pkix.Extension{dnsName}
			t.Algorithm = pkix.AlgorithmIdentifier{Algorithm: id}
			*outer = t.Algorithm
		}
	}
	by := func(hash crypto.Hash) func([]byte) []byte {
		return func(body []byte) []byte {
			h := hash.New()
			h.Write(body)
			return must(root.key.Sign(rand.Reader, h.Sum(nil), hash))
		}
	}
	server("by hand", byHand(root, leafName, v3(), nil), chain(root))
	server("signed with SHA-1", byHand(root, leafName, algorithm(1, 2, 840, 10045, 4, 1), by(crypto.SHA1)), chain(root))
	server("signed with MD5", byHand(root, leafName, algorithm(1, 2, 840, 113549, 1, 1, 4), by(crypto.SHA1)), chain(root))
	server("signed in an unknown way", byHand(root, leafName, algorithm(1, 2, 3, 4), by(crypto.SHA256)), chain(root))
	server("signature of something else", byHand(root, leafName, v3(), func([]byte) []byte { return by(crypto.SHA256)([]byte("x")) }), chain(root))
	server("two algorithms", byHand(root, leafName, func(t *tbs, outer *pkix.AlgorithmIdentifier) {
		v3()(t, outer)
		outer.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	}, nil), chain(root))
	// Forms.
	server("version 1", byHand(root, leafName, nil, nil), chain(root))
	server("version 2", byHand(root, leafName, func(t *tbs, _ *pkix.AlgorithmIdentifier) { t.Version = 1 }, nil), chain(root))
	server("version 4", byHand(root, leafName, func(t *tbs, _ *pkix.AlgorithmIdentifier) { t.Version = 3 }, nil), chain(root))
	server("a negative number", byHand(root, leafName, func(t *tbs, a *pkix.AlgorithmIdentifier) {
		v3()(t, a)
		t.Serial = asn1.RawValue{FullBytes: []byte{2, 1, 0xff}}
	}, nil), chain(root))
	server("number zero", byHand(root, leafName, func(t *tbs, a *pkix.AlgorithmIdentifier) {
		v3()(t, a)
		t.Serial = asn1.RawValue{FullBytes: []byte{2, 1, 0}}
	}, nil), chain(root))
	server("names twice", byHand(root, leafName, v3(dnsName), nil), chain(root))
	server("an unknown critical extension", byHand(root, leafName, v3(pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}), nil), chain(root))
	server("an unknown extension", byHand(root, leafName, v3(pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte{5, 0}}), nil), chain(root))
	server("malformed constraints", byHand(root, leafName, v3(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte{5, 0}}), nil), chain(root))
	server("malformed usages", byHand(root, leafName, v3(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{0x30, 1, 1}}), nil), chain(root))
	server("a critical key identifier", byHand(root, leafName, v3(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 14}, Critical: true, Value: []byte{4, 1, 1}}), nil), chain(root))
	server("critical names of an unknown kind", byHand(root, leafName, func(t *tbs, _ *pkix.AlgorithmIdentifier) {
		t.Version, t.Extensions = 2, []pkix.Extension{{Id: dnsName.Id, Critical: true, Value: []byte{0x30, 3, 0x88, 1, 0x2a}}}
	}, nil), chain(root))
	server("subject of an unprintable string", byHand(root, name(false, attribute{oidCN, asn1.TagPrintableString, "a@b"}), v3(), nil), chain(root))
	server("no subject", byHand(root, name(false), v3(), nil), chain(root))
	server("no certificate", pemOf("CERTIFICATE", []byte{0x30, 0}), chain(root))
	server("bytes behind it", pemOf("CERTIFICATE", append(append([]byte{}, root.leaf().der...), 0)), chain(root))
	// Names.
	for _, host := range []string{"10.0.0.1", "[10.0.0.1]", "10.0.0.2", "b.example", "A.EXAMPLE", "a.example.", "sub.a.example", "::1"} {
		out = append(out, reach("reached as "+host, host, chain(root.leaf()), chain(root)))
	}
	wild := chain(root.leaf(dns("*.w.example", "x.*.example", "_s.example", "-bad.example")))
	for _, host := range []string{"a.w.example", "b.a.w.example", "w.example", "x.y.example", "_s.example", "-bad.example", "*.w.example"} {
		out = append(out, reach("wildcards reached as "+host, host, wild, chain(root)))
	}
	noNames := func(t *x509.Certificate) { t.DNSNames, t.IPAddresses, t.Subject.CommonName = nil, nil, "a.example" }
	signedBy("the name in the subject only", noNames)
	server("another name in the subject only", chain(root.leaf(noNames, func(t *x509.Certificate) { t.Subject.CommonName = "b.example" })), chain(root))
	out = append(out, reach("address without addresses", "10.0.0.1", chain(root.leaf(dns("a.example"))), chain(root)))
	signedBy("an address in the names", dns("10.0.0.1"))
	signedBy("a mail address only", func(t *x509.Certificate) { t.DNSNames, t.IPAddresses, t.EmailAddresses = nil, nil, []string{"a@b"} })
	many := make([]string, 120)
	for i := range many {
		many[i] = fmt.Sprintf("n%d.example", i)
	}
	signedBy("many names", dns(many...))
	// Usages.
	signedBy("for clients only", usages(x509.ExtKeyUsageClientAuth))
	signedBy("for any use", usages(x509.ExtKeyUsageAny))
	signedBy("for code", usages(x509.ExtKeyUsageCodeSigning))
	signedBy("for an unknown use", func(t *x509.Certificate) {
		t.ExtKeyUsage, t.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3}}
	})
	signedBy("key for certificates only", func(t *x509.Certificate) { t.KeyUsage = x509.KeyUsageCertSign })
	clientMid := root.ca("mid for clients", usages(x509.ExtKeyUsageClientAuth))
	server("intermediate for clients only", chain(clientMid.leaf(), clientMid), chain(root))
	clientRoot := (*party)(nil).ca("root for clients", usages(x509.ExtKeyUsageClientAuth))
	server("root for clients only", chain(clientRoot.leaf()), chain(clientRoot))
	anyMid := root.ca("mid for any", usages(x509.ExtKeyUsageAny))
	server("intermediate for any use", chain(anyMid.leaf(), anyMid), chain(root))
	// Who may sign.
	noCA := root.ca("no authority", func(t *x509.Certificate) { t.IsCA = false })
	server("signed by a leaf", chain(noCA.leaf(), noCA), chain(root))
	noCARoot := (*party)(nil).ca("no authority root", func(t *x509.Certificate) { t.IsCA = false })
	server("trusted but no authority", chain(noCARoot.leaf()), chain(noCARoot))
	noBasic := (*party)(nil).ca("no constraints", func(t *x509.Certificate) { t.IsCA, t.BasicConstraintsValid = false, false })
	server("trusted without constraints", chain(noBasic.leaf()), chain(noBasic))
	noSign := (*party)(nil).ca("may not sign", func(t *x509.Certificate) { t.KeyUsage = x509.KeyUsageDigitalSignature })
	server("trusted but not to sign", chain(noSign.leaf()), chain(noSign))
	noUsage := (*party)(nil).ca("no usage", func(t *x509.Certificate) { t.KeyUsage = 0 })
	server("trusted without usages", chain(noUsage.leaf()), chain(noUsage))
	v1Root := (*party)(nil)
	{
		text := byHand(&party{cert: &x509.Certificate{RawSubject: name(false, attribute{oidCN, asn1.TagUTF8String, "v1 root"})}, key: p256}, name(false, attribute{oidCN, asn1.TagUTF8String, "v1 root"}), nil, nil)
		block, _ := pem.Decode([]byte(text))
		v1Root = &party{cert: must(x509.ParseCertificate(block.Bytes)), der: block.Bytes, key: p256}
	}
	server("root of version 1", chain(v1Root.leafOf(p384)), chain(v1Root))
	path0 := (*party)(nil).ca("path 0", path(0))
	mid0 := path0.ca("mid of path 0")
	server("path of 0 with no intermediate", chain(path0.leaf()), chain(path0))
	server("path of 0 with one", chain(mid0.leaf(), mid0), chain(path0))
	path1 := (*party)(nil).ca("path 1", path(1))
	mid1 := path1.ca("mid of path 1")
	mid2 := mid1.ca("second mid of path 1")
	server("path of 1 with one", chain(mid1.leaf(), mid1), chain(path1))
	server("path of 1 with two", chain(mid2.leaf(), mid2, mid1), chain(path1))
	criticalMid := root.ca("odd mid", extra(true, []byte{5, 0}, 1, 2, 3, 4))
	server("unknown critical in the intermediate", chain(criticalMid.leaf(), criticalMid), chain(root))
	// A key that is too short; its signature isn't looked at.
	short := new(big.Int).SetBit(big.NewInt(1), 511, 1)
	shortKey := must(x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: short, E: 65537}))
	shortName := name(false, attribute{oidCN, asn1.TagUTF8String, "short root"})
	issuer := &party{cert: &x509.Certificate{RawSubject: shortName}, key: p256}
	shortRoot := byHand(issuer, shortName, func(t *tbs, _ *pkix.AlgorithmIdentifier) {
		t.Version, t.Key = 2, asn1.RawValue{FullBytes: shortKey}
		t.Extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}
	}, nil)
	server("signed by RSA 512", byHand(issuer, leafName, func(t *tbs, outer *pkix.AlgorithmIdentifier) {
		v3()(t, outer)
		t.Algorithm = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue}
		*outer = t.Algorithm
	}, func([]byte) []byte { return make([]byte, 64) }), shortRoot)
	// Ways around.
	cross := other.ca("mid")
	server("two intermediates of one name", chain(mid.leaf(), cross, mid), chain(root))
	loopA, loopKey := base("loop a"), p256
	isCA(loopA)
	loopB := base("loop b")
	isCA(loopB)
	a := &party{cert: loopA, key: loopKey}
	b := &party{cert: loopB, key: p384}
	aByB := b.signs(loopA, loopKey)
	bByA := a.signs(loopB, p384)
	server("a loop", chain((&party{cert: aByB.cert, key: loopKey}).leafOf(ed), aByB, bByA), chain(root))
	deep := root
	var steps []*party
	for i := 0; i < 8; i++ {
		deep = deep.ca(fmt.Sprintf("step %d", i))
		steps = append([]*party{deep}, steps...)
	}
	server("eight intermediates", chain(append([]*party{deep.leaf()}, steps...)...), chain(root))
	var same []*party
	for i := 0; i < 101; i++ {
		same = append(same, (*party)(nil).ca("root", func(t *x509.Certificate) { t.SubjectKeyId = root.cert.SubjectKeyId }))
	}
	server("too many of one name", chain(root.leaf()), chain(append(same, root)...))
	// Name constraints.
	bound := func(id string, leaf change, c ...change) {
		p := (*party)(nil).ca("bound", c...)
		l := p.leaf(leaf)
		host := "a.example"
		if len(l.cert.DNSNames) > 0 {
			host = l.cert.DNSNames[0]
		} else if len(l.cert.IPAddresses) > 0 {
			host = l.cert.IPAddresses[0].String()
		} else {
			host = ""
		}
		out = append(out, reach(id, host, chain(l), chain(p)))
	}
	permit := func(names ...string) change {
		return func(t *x509.Certificate) { t.PermittedDNSDomainsCritical, t.PermittedDNSDomains = true, names }
	}
	exclude := func(names ...string) change { return func(t *x509.Certificate) { t.ExcludedDNSDomains = names } }
	network := func(text string) *net.IPNet { _, n, _ := net.ParseCIDR(text); return n }
	address := func(text string) change {
		return func(t *x509.Certificate) { t.DNSNames, t.IPAddresses = nil, []net.IP{net.ParseIP(text)} }
	}
	uri := func(text string) change {
		return func(t *x509.Certificate) {
			t.DNSNames, t.IPAddresses, t.URIs = nil, nil, []*url.URL{must(url.Parse(text))}
		}
	}
	mail := func(text string) change {
		return func(t *x509.Certificate) { t.DNSNames, t.IPAddresses, t.EmailAddresses = nil, nil, []string{text} }
	}
	bound("permitted name", dns("a.example"), permit("example"))
	bound("permitted itself", dns("example"), permit("example"))
	bound("only below", dns("example"), permit(".example"))
	bound("below", dns("a.example"), permit(".example"))
	bound("not permitted name", dns("a.example.org"), permit("example"))
	bound("not at a label", dns("aexample"), permit("example"))
	bound("permitted in another case", dns("A.EXAMPLE"), permit("example"))
	bound("excluded name", dns("a.example"), exclude("example"))
	bound("excluded and permitted", dns("a.b.example"), permit("example"), exclude("b.example"))
	bound("wildcard over an excluded one", dns("*.b.example"), exclude("c.b.example"))
	bound("wildcard beside an excluded one", dns("*.b.example"), exclude("c.d.example"))
	bound("everything excluded", dns("a.example"), exclude(""))
	bound("addresses with names constrained", address("10.0.0.1"), permit("example"))
	bound("permitted address", address("10.1.2.3"), func(t *x509.Certificate) { t.PermittedIPRanges = []*net.IPNet{network("10.0.0.0/8")} })
	bound("not permitted address", address("11.1.2.3"), func(t *x509.Certificate) { t.PermittedIPRanges = []*net.IPNet{network("10.0.0.0/8")} })
	bound("address of another family", address("fd00::1"), func(t *x509.Certificate) { t.PermittedIPRanges = []*net.IPNet{network("10.0.0.0/8")} })
	bound("excluded address", address("10.1.2.3"), func(t *x509.Certificate) { t.ExcludedIPRanges = []*net.IPNet{network("10.1.0.0/16")} })
	bound("permitted URI", uri("spiffe://td.example/x"), func(t *x509.Certificate) { t.PermittedURIDomains = []string{"td.example"} })
	bound("not permitted URI", uri("spiffe://td.other/x"), func(t *x509.Certificate) { t.PermittedURIDomains = []string{"td.example"} })
	bound("URI of an address", uri("https://10.0.0.1:443/x"), func(t *x509.Certificate) { t.PermittedURIDomains = []string{"td.example"} })
	bound("URI without a host", uri("urn:a:b"), func(t *x509.Certificate) { t.PermittedURIDomains = []string{"td.example"} })
	bound("permitted mail", mail("u@b.example"), func(t *x509.Certificate) { t.PermittedEmailAddresses = []string{"b.example"} })
	bound("permitted mailbox", mail("u@B.example"), func(t *x509.Certificate) { t.PermittedEmailAddresses = []string{"u@b.example"} })
	bound("not permitted mailbox", mail("v@b.example"), func(t *x509.Certificate) { t.PermittedEmailAddresses = []string{"u@b.example"} })
	bound("excluded mail", mail("u@b.example"), func(t *x509.Certificate) { t.ExcludedEmailAddresses = []string{"b.example"} })
	bound("names without names", func(t *x509.Certificate) { t.DNSNames, t.IPAddresses = nil, nil }, permit("example"))
	boundMid := root.ca("bound mid", permit("other"))
	server("constraints in the intermediate", chain(boundMid.leaf(), boundMid), chain(root))
	server("constraints of a bad mask", byHand(root, leafName, v3(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 30}, Value: must(asn1.Marshal(struct {
		Permitted []struct{ Base asn1.RawValue } `asn1:"tag:0"`
	}{[]struct{ Base asn1.RawValue }{{asn1.RawValue{Class: 2, Tag: 7, Bytes: []byte{10, 0, 0, 0, 255, 0, 255, 0}}}}}))}), nil), chain(root))
	server("constraints of nothing", byHand(root, leafName, v3(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 30}, Value: []byte{0x30, 0}}), nil), chain(root))
	// Clients.
	client("client", chain(root.leaf()), chain(root))
	client("client of version 1", byHand(root, leafName, nil, nil), chain(root))
	client("client with CA:TRUE", chain(root.leaf(isCA)), chain(root))
	client("client without usages", chain(root.leaf(usages())), chain(root))
	client("server as a client", chain(root.leaf(usages(x509.ExtKeyUsageServerAuth))), chain(root))
	client("client that has ended", chain(root.leaf(ends(now.AddDate(0, 0, -1)))), chain(root))
	client("client of P-521", chain(root.leafOf(p521)), chain(root))
	client("client by an intermediate", chain(mid.leaf(), mid), chain(root))
	client("unknown client", chain(other.leaf()), chain(root))
	client("client that is trusted itself", chain(pinned), chain(pinned))
	client("self-signed client", chain(selfOther), chain(selfOther))
	return out
}
