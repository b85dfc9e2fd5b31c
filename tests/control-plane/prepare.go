package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Who may talk to the API server: kubeconfigs NAME.kubeconfig with a bearer token, so that they work through `faults` too.
var identities = []struct{ name, user, groups string }{
	{"admin", "admin", "system:masters"},
	{"kube-controller-manager", "system:kube-controller-manager", ""},
	{"kube-scheduler", "system:kube-scheduler", ""},
	// What K3s gives its kube-proxy, and what a Pinnace finds on a K3s agent: it may read and no more.
	{"read-only", "system:kube-proxy", ""},
	// As if by a token of the service account that rbac.yaml makes.
	{"pinnace", "system:serviceaccount:pinnace:pinnace", "system:serviceaccounts,system:serviceaccounts:pinnace"},
	{"nobody", "nobody", ""},
}

const auditPolicy = `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}
`

// prepare fills a directory with what the programs need: certificates, kubeconfigs, the audit policy, and for each
// program its arguments, one per line, in NAME.arguments. Whoever starts or restarts a program takes them from there.
func prepare() error {
	flags := flag.NewFlagSet("prepare", flag.ExitOnError)
	address := flags.String("address", "127.0.0.1", "the API server's address, for clients in every network namespace")
	port := flags.Int("port", 0, "its port (0: a free one)")
	faultsPort := flags.Int("faults-port", 0, "port of the proxy that can be told to fail (0: a free one)")
	podCIDR := flags.String("pod-cidr", "10.42.0.0/16,fd42::/48", "addresses of pods")
	serviceCIDR := flags.String("service-cidr", "10.43.0.0/16,fd43::/112", "cluster addresses of Services")
	grace := flags.Duration("node-grace-period", 24*time.Hour, "how long a Node without heartbeats counts as ready")
	flags.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: prepare [FLAG...] DIRECTORY")
		flags.PrintDefaults()
	}
	_ = flags.Parse(os.Args[1:])
	if flags.NArg() != 1 {
		flags.Usage()
		os.Exit(2)
	}
	directory, err := filepath.Abs(flags.Arg(0))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	ip := net.ParseIP(*address)
	if ip == nil {
		return fmt.Errorf("%q is no address", *address)
	}
	for _, wanted := range []*int{port, faultsPort} {
		if err := freePort(ip, wanted); err != nil {
			return err
		}
	}

	file := func(name string) string { return filepath.Join(directory, name) }
	if err := writeCertificates(directory, ip); err != nil {
		return err
	}
	if err := os.WriteFile(file("audit-policy.yaml"), []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	direct, faulty := endpoint(ip, *port), endpoint(ip, *faultsPort)
	if err := writeIdentities(directory, direct, faulty); err != nil {
		return err
	}

	bind := "0.0.0.0"
	if ip.To4() == nil {
		bind = "::"
	}
	if ip.IsLoopback() {
		bind = *address
	}
	arguments := map[string][]string{
		"etcd": {
			"--data-dir=" + file("etcd"), "--log-level=warn", "--unsafe-no-fsync",
			"--listen-client-urls=unix://" + file("etcd.sock"), "--listen-peer-urls=unix://" + file("etcd-peer.sock"),
			// One is asked for, though a single member never uses it.
			"--advertise-client-urls=http://localhost:2379",
		},
		"kube-apiserver": {
			"--etcd-servers=unix://" + file("etcd.sock"), "--bind-address=" + bind, "--secure-port=" + fmt.Sprint(*port),
			"--tls-cert-file=" + file("server.crt"), "--tls-private-key-file=" + file("server.key"),
			"--token-auth-file=" + file("tokens.csv"), "--authorization-mode=RBAC", "--allow-privileged",
			"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + file("accounts.key"),
			"--service-account-signing-key-file=" + file("accounts.key"), "--service-cluster-ip-range=" + *serviceCIDR,
			"--audit-policy-file=" + file("audit-policy.yaml"), "--audit-log-path=" + file("audit.log"), "--audit-log-mode=blocking",
			// A stopped API server shall be gone at once, not after its clients had time to leave.
			"--shutdown-delay-duration=0s", "--advertise-address=" + *address,
		},
		"kube-controller-manager": {
			"--kubeconfig=" + file("kube-controller-manager.kubeconfig"), "--leader-elect=false", "--secure-port=0",
			"--use-service-account-credentials", "--service-account-private-key-file=" + file("accounts.key"),
			"--root-ca-file=" + file("ca.crt"), "--cluster-cidr=" + *podCIDR, "--service-cluster-ip-range=" + *serviceCIDR,
			"--node-monitor-period=1s", "--node-monitor-grace-period=" + grace.String(),
			"--controllers=endpointslice-controller,endpointslice-mirroring-controller,endpoints-controller,serviceaccount-controller," +
				"serviceaccount-token-controller,namespace-controller,garbage-collector-controller,root-ca-certificate-publisher-controller," +
				"clusterrole-aggregation-controller,deployment-controller,replicaset-controller,daemonset-controller," +
				"node-lifecycle-controller,taint-eviction-controller",
		},
		"kube-scheduler": {
			"--kubeconfig=" + file("kube-scheduler.kubeconfig"), "--leader-elect=false", "--secure-port=0",
		},
		"faults": {
			"-listen=" + strings.TrimPrefix(faulty, "https://"), "-backend=" + direct, "-directory=" + directory,
		},
	}
	if ip.IsLoopback() {
		// A loopback address may not stand in the endpoints of the Service `kubernetes`.
		arguments["kube-apiserver"] = append(arguments["kube-apiserver"], "--endpoint-reconciler-type=none")
	}
	for name, lines := range arguments {
		if err := os.WriteFile(file(name+".arguments"), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// freePort chooses a port unless one is given. Somebody else may take it before it is used; then the program says so and ends.
func freePort(ip net.IP, port *int) error {
	if *port != 0 {
		return nil
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip})
	if err != nil {
		return err
	}
	*port = listener.Addr().(*net.TCPAddr).Port
	return listener.Close()
}

func endpoint(ip net.IP, port int) string {
	return "https://" + net.JoinHostPort(ip.String(), fmt.Sprint(port))
}

func writeCertificates(directory string, ip net.IP) error {
	authority, err := newAuthority(directory)
	if err != nil {
		return err
	}
	addresses := []net.IP{ip, net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.IPv4(10, 43, 0, 1), net.ParseIP("fd43::1")}
	if err := authority.issue(directory, "server", addresses, time.Now().Add(30*24*time.Hour)); err != nil {
		return err
	}
	if err := authority.issue(directory, "expired", addresses, time.Now().Add(-time.Hour)); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	return writeKey(filepath.Join(directory, "accounts.key"), key)
}

// writeIdentities writes the tokens, and for everyone two kubeconfigs: one for the API server and one through the proxy.
func writeIdentities(directory, direct, faulty string) error {
	var tokens strings.Builder
	for _, identity := range identities {
		secret := make([]byte, 16)
		_, _ = rand.Read(secret)
		token := hex.EncodeToString(secret)
		fmt.Fprintf(&tokens, "%s,%s,%s,%q\n", token, identity.user, identity.name, identity.groups)
		for suffix, server := range map[string]string{"": direct, "-faults": faulty} {
			text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: "%s", certificate-authority: "%s"}}]
users: [{name: test, user: {token: "%s"}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
`, server, filepath.Join(directory, "ca.crt"), token)
			if err := os.WriteFile(filepath.Join(directory, identity.name+suffix+".kubeconfig"), []byte(text), 0o600); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(filepath.Join(directory, "tokens.csv"), []byte(tokens.String()), 0o600)
}
