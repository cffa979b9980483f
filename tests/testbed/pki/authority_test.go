// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// handshake tries a mutual TLS handshake and returns what each side says.
func handshake(t *testing.T, server, client Pair, roots, clientRoots []byte, name string) (peer *x509.Certificate, serverErr, clientErr error) {
	t.Helper()
	pool := func(pem []byte) *x509.CertPool {
		p := x509.NewCertPool()
		p.AppendCertsFromPEM(pem)
		return p
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s := tls.Server(a, &tls.Config{
		Certificates: []tls.Certificate{must[tls.Certificate](t)(tls.X509KeyPair(server.Cert, server.Key))},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: pool(clientRoots), MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
	})
	c := tls.Client(b, &tls.Config{
		Certificates: []tls.Certificate{must[tls.Certificate](t)(tls.X509KeyPair(client.Cert, client.Key))},
		RootCAs:      pool(roots), ServerName: name,
	})
	done := make(chan error, 1)
	go func() { err := s.Handshake(); a.Close(); done <- err }()
	clientErr = c.Handshake()
	b.Close()
	serverErr = <-done
	if serverErr == nil {
		peer = s.ConnectionState().PeerCertificates[0]
	}
	return peer, serverErr, clientErr
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	ca := must[*Authority](t)(NewAuthority("ca"))
	other := must[*Authority](t)(NewAuthority("ca")) // the same name, another key
	server := must[Pair](t)(ca.Server("kube-apiserver", "192.0.2.1", "kubernetes.default.svc"))
	node := must[Pair](t)(ca.Client("system:node:node1", "system:nodes"))
	stranger := must[Pair](t)(other.Client("system:node:node1", "system:nodes"))

	for _, name := range []string{"192.0.2.1", "kubernetes.default.svc"} {
		peer, serverErr, clientErr := handshake(t, server, node, ca.Cert, ca.Cert, name)
		if serverErr != nil || clientErr != nil {
			t.Fatalf("%s: %v, %v", name, serverErr, clientErr)
		}
		if peer.Subject.CommonName != "system:node:node1" || len(peer.Subject.Organization) != 1 || peer.Subject.Organization[0] != "system:nodes" {
			t.Errorf("the server sees %v", peer.Subject)
		}
	}
	for name, try := range map[string]func() (error, error){
		"a name that is not in the certificate": func() (error, error) {
			_, s, c := handshake(t, server, node, ca.Cert, ca.Cert, "192.0.2.2")
			return s, c
		},
		"a client of another authority": func() (error, error) {
			_, s, c := handshake(t, server, stranger, ca.Cert, ca.Cert, "192.0.2.1")
			return s, c
		},
		"a server certificate as a client's": func() (error, error) {
			_, s, c := handshake(t, server, server, ca.Cert, ca.Cert, "192.0.2.1")
			return s, c
		},
	} {
		if s, c := try(); s == nil && c == nil {
			t.Errorf("accepted: %s", name)
		}
	}
}

func TestWriteKeepsTheKeyToTheOwner(t *testing.T) {
	t.Parallel()
	pair := must[Pair](t)(NewSigningKey())
	base := filepath.Join(t.TempDir(), "sa")
	if err := pair.Write(base); err != nil {
		t.Fatal(err)
	}
	if info := must[fs.FileInfo](t)(os.Stat(base + ".key")); info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key is %v", info.Mode())
	}
}
