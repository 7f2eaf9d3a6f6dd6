// Command x509 makes certificate requests and certificates of every form found in the field or in attacks, and writes
// them down with what upstream's own code says of them: Go's crypto/x509, and the signers of kube-controller-manager.
package main

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"log"
	"os"
	"path/filepath"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Panic(err)
	}
	return value
}

func write(name string, value any) {
	text := must(json.MarshalIndent(value, "", " "))
	if err := os.WriteFile(filepath.Join(os.Args[1], name), append(text, '\n'), 0o644); err != nil {
		log.Fatal(err)
	}
}

func pemOf(label string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

var (
	rsa1024   = must(rsa.GenerateKey(rand.Reader, 1024))
	rsa2048   = must(rsa.GenerateKey(rand.Reader, 2048))
	rsa4096   = must(rsa.GenerateKey(rand.Reader, 4096))
	p224      = must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	p256      = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p384      = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	p521      = must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	_, ed, _  = ed25519.GenerateKey(rand.Reader)
	otherP256 = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
)

func main() {
	if err := os.MkdirAll(os.Args[1], 0o755); err != nil {
		log.Fatal(err)
	}
	write("requests.json", requests())
	write("certificates.json", chains())
}
