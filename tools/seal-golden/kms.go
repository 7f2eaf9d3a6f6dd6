package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"time"

	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	kmsservice "k8s.io/kms/pkg/service"
)

const kmsPrefix, kmsKey, kmsValue = "k8s:enc:kms:v2:vault:", "/a", "value"

// The plug-in of the crate's tests: turns bits over.
type plugin struct{}

func turned(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = ^b[i]
	}
	return out
}

func (plugin) Decrypt(_ context.Context, _ string, r *kmsservice.DecryptRequest) ([]byte, error) {
	return turned(r.Ciphertext), nil
}

func (plugin) Encrypt(_ context.Context, _ string, b []byte) (*kmsservice.EncryptResponse, error) {
	annotations := map[string][]byte{"version.encryption.example": []byte("1")}
	return &kmsservice.EncryptResponse{Ciphertext: turned(b), KeyID: "key-0", Annotations: annotations}, nil
}

func (plugin) Status(context.Context) (*kmsservice.StatusResponse, error) {
	return &kmsservice.StatusResponse{Version: "v2", Healthz: "ok", KeyID: "key-0"}, nil
}

// kms seals by a plug-in, with a derived key and with the older kind (`make`), or opens what the crate's test has sealed (FILE).
func kms(ctx context.Context, what string) {
	dek, object, cacheKey, err := kmsv2.GenerateTransformer(ctx, "uid", plugin{}, true)
	if err != nil {
		panic(err)
	}
	state := func() (kmsv2.State, error) {
		return kmsv2.State{
			Transformer:                           dek,
			EncryptedObjectKeyID:                  object.KeyID,
			EncryptedObjectEncryptedDEKSource:     object.EncryptedDEKSource,
			EncryptedObjectAnnotations:            object.Annotations,
			EncryptedObjectEncryptedDEKSourceType: object.EncryptedDEKSourceType,
			ExpirationTimestamp:                   time.Now().Add(time.Hour),
			CacheKey:                              cacheKey,
			KMSProviderName:                       "vault",
		}, nil
	}
	transformer := kmsv2.NewEnvelopeTransformer(plugin{}, "vault", state, "")
	if what != "make" {
		sealed := must(os.ReadFile(what))[len(kmsPrefix):]
		opened, stale, err := transformer.TransformFromStorage(ctx, sealed, value.DefaultContext(kmsKey))
		if err != nil || stale || string(opened) != kmsValue {
			panic(fmt.Sprint(err, " stale ", stale))
		}
		fmt.Println("a value sealed by a plug-in here is opened by kube-apiserver's code")
		return
	}
	out := must(os.Create(dir + "kms.txt"))
	defer out.Close()
	for _, seed := range []bool{true, false} {
		dek, object, cacheKey, err = kmsv2.GenerateTransformer(ctx, "uid", plugin{}, seed)
		if err != nil {
			panic(err)
		}
		sealed := must(transformer.TransformToStorage(ctx, []byte(kmsValue), value.DefaultContext(kmsKey)))
		fmt.Fprintln(out, base64.StdEncoding.EncodeToString(append([]byte(kmsPrefix), sealed...)))
	}
}
