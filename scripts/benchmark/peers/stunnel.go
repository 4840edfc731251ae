package peers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"time"
)

// stunnel has a TLS 1.3 connection for each connection.
func stunnel() *Peer {
	return &Peer{
		Name: "stunnel", Note: "stunnel, TLS 1.3", Needs: []string{"stunnel"},
		Prepare: func(_ context.Context, t *Tunnel) error {
			cert, err := selfSigned()
			if err != nil {
				return err
			}
			if err := t.write("cert.pem", cert); err != nil {
				return err
			}
			return t.pickPort()
		},
		Offer: func(ctx context.Context, t *Tunnel) error {
			return t.stunnel(ctx, t.Offer, "offer", "cert = "+t.path("cert.pem")+"\naccept = "+t.contact()+"\nconnect = "+t.Service+"\n")
		},
		Forward: func(ctx context.Context, t *Tunnel) error {
			if _, err := t.bindHere(); err != nil {
				return err
			}
			// The one certificate that is taken is the server's own.
			return t.stunnel(ctx, t.Forward, "forward", "client = yes\nverifyPeer = yes\nCAfile = "+t.path("cert.pem")+
				"\naccept = "+t.Addr+"\nconnect = "+t.contact()+"\n")
		},
	}
}

func (t *Tunnel) stunnel(ctx context.Context, s Side, name, service string) error {
	head := "foreground = yes\npid =\nsyslog = no\ndebug = notice\n[bench]\nsslVersion = TLSv1.3\nciphersuites = TLS_AES_128_GCM_SHA256\n"
	if err := t.write(name+".conf", head+service); err != nil {
		return err
	}
	_, err := t.startUntil(ctx, s, "Configuration successful", []string{t.Programs["stunnel"], t.path(name + ".conf")})
	return err
}

// selfSigned gives a key and a certificate, in PEM.
func selfSigned() (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	about := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, about, about, &key.PublicKey, key)
	if err != nil {
		return "", err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})), nil
}
