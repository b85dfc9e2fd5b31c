package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fault is how the proxy treats requests and connections.
type fault struct {
	delay   time.Duration // before every answer
	status  int           // the answer to every request instead of the API server's; 0: none
	frozen  bool          // connections are accepted, nothing is ever answered
	refuse  bool          // nobody listens
	expired bool          // new connections see a certificate that has expired
}

// gate stands between clients and the API server. It ends TLS, so that it can answer in the API server's name; who the
// client is goes on by its bearer token.
type gate struct {
	lock        sync.Mutex
	fault       fault
	changed     chan struct{} // closed when the fault changes
	connections map[net.Conn]struct{}
	started     map[*http.Request]bool // answers under way: whether they are to say nothing more
	listener    net.Listener
	address     string
	server      *http.Server
	certificate map[bool]*tls.Certificate // by "expired"
}

// faults runs the proxy. Commands, one per line, are read from DIRECTORY/faults.sock, each answered with "ok" or a complaint:
//
//	pass            everything goes through
//	delay SECONDS   every answer comes so much later
//	status CODE     429, 500, 403… for every request, with a Status object as body
//	freeze          nothing is answered any more, connections stay
//	refuse          nobody listens, existing connections are cut
//	expired         new connections see an expired certificate, existing ones are cut
//	cut             existing connections are cut; the mode stays
//	hush RESOURCE   answers under way about it, like endpointslices, say nothing more and do not end; the mode stays
func faults() error {
	flags := flag.NewFlagSet("faults", flag.ExitOnError)
	listen := flags.String("listen", "", "ADDRESS:PORT to listen on")
	backend := flags.String("backend", "", "URL of the API server")
	directory := flags.String("directory", "", "where ca.crt, server.*, expired.* are and faults.sock is made")
	_ = flags.Parse(os.Args[1:])

	target, err := url.Parse(*backend)
	if err != nil {
		return err
	}
	authority, err := os.ReadFile(filepath.Join(*directory, "ca.crt"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	p := &gate{changed: make(chan struct{}), connections: map[net.Conn]struct{}{}, started: map[*http.Request]bool{}, address: *listen, certificate: map[bool]*tls.Certificate{}}
	for expired, name := range map[bool]string{false: "server", true: "expired"} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(*directory, name+".crt"), filepath.Join(*directory, name+".key"))
		if err != nil {
			return err
		}
		p.certificate[expired] = &pair
	}

	forward := httputil.NewSingleHostReverseProxy(target)
	forward.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	forward.FlushInterval = -1 // events of a watch at once
	p.server = &http.Server{
		Handler:           p.handler(forward),
		ReadHeaderTimeout: time.Minute,
		ConnState:         p.remember,
		TLSConfig: &tls.Config{
			NextProtos: []string{"h2", "http/1.1"},
			// A client that resumes a session is not shown the certificate, so it would not see that it has expired.
			SessionTicketsDisabled: true,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				current, _ := p.current()
				return p.certificate[current.expired], nil
			},
		},
	}
	if err := p.open(); err != nil {
		return err
	}
	socket := filepath.Join(*directory, "faults.sock")
	_ = os.Remove(socket)
	control, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	for {
		connection, err := control.Accept()
		if err != nil {
			return err
		}
		go p.obey(connection)
	}
}

func (p *gate) current() (fault, <-chan struct{}) {
	p.lock.Lock()
	defer p.lock.Unlock()
	return p.fault, p.changed
}

func (p *gate) handler(forward http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		current, changed := p.current()
		for current.frozen {
			select {
			case <-changed:
				current, changed = p.current()
			case <-r.Context().Done():
				return
			}
		}
		if current.delay > 0 {
			select {
			case <-time.After(current.delay):
			case <-r.Context().Done():
				return
			}
		}
		if current.status != 0 {
			refusal(w, current.status)
			return
		}
		p.lock.Lock()
		p.started[r] = false
		p.lock.Unlock()
		defer func() {
			p.lock.Lock()
			delete(p.started, r)
			p.lock.Unlock()
		}()
		forward.ServeHTTP(&freezable{w, p, r}, r)
	})
}

// freezable holds back what a running answer (a watch) would still write while the proxy is frozen, or for ever.
type freezable struct {
	http.ResponseWriter
	proxy   *gate
	request *http.Request
}

func (f *freezable) Write(data []byte) (int, error) {
	for {
		current, changed := f.proxy.current()
		if !current.frozen && !f.proxy.hushed(f.request) {
			return f.ResponseWriter.Write(data)
		}
		select {
		case <-changed:
		case <-f.request.Context().Done():
			return 0, f.request.Context().Err()
		}
	}
}

func (p *gate) hushed(request *http.Request) bool {
	p.lock.Lock()
	defer p.lock.Unlock()
	return p.started[request]
}

func (p *gate) hush(resource string) {
	p.lock.Lock()
	defer p.lock.Unlock()
	for request := range p.started {
		if strings.HasSuffix(request.URL.Path, "/"+resource) {
			p.started[request] = true
		}
	}
}

func (f *freezable) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// refusal answers as the API server does when it cannot or will not.
func refusal(w http.ResponseWriter, code int) {
	reason := map[int]string{401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}[code]
	status := map[string]any{
		"apiVersion": "v1", "kind": "Status", "metadata": map[string]any{}, "status": "Failure",
		"code": code, "reason": reason, "message": "a fault made by the test",
	}
	w.Header().Set("Content-Type", "application/json")
	if code == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
		status["details"] = map[string]any{"retryAfterSeconds": 1}
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(status)
}

func (p *gate) remember(connection net.Conn, state http.ConnState) {
	p.lock.Lock()
	defer p.lock.Unlock()
	switch state {
	case http.StateNew:
		p.connections[connection] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(p.connections, connection)
	}
}

func (p *gate) cut() {
	p.lock.Lock()
	open := make([]net.Conn, 0, len(p.connections))
	for connection := range p.connections {
		open = append(open, connection)
	}
	p.lock.Unlock()
	for _, connection := range open {
		// The socket below TLS: a farewell must not wait for a client that does not read.
		if secure, ok := connection.(*tls.Conn); ok {
			connection = secure.NetConn()
		}
		_ = connection.Close()
	}
}

func (p *gate) open() error {
	p.lock.Lock()
	defer p.lock.Unlock()
	if p.listener != nil {
		return nil
	}
	listener, err := net.Listen("tcp", p.address)
	if err != nil {
		return err
	}
	p.listener = listener
	go func() { _ = p.server.ServeTLS(listener, "", "") }()
	return nil
}

func (p *gate) close() {
	p.lock.Lock()
	listener := p.listener
	p.listener = nil
	p.lock.Unlock()
	if listener != nil {
		_ = listener.Close()
	}
}

func (p *gate) obey(connection net.Conn) {
	defer connection.Close()
	lines := bufio.NewScanner(connection)
	for lines.Scan() {
		answer := "ok"
		if err := p.command(strings.Fields(lines.Text())); err != nil {
			answer = err.Error()
		}
		fmt.Fprintln(connection, answer)
	}
}

func (p *gate) command(words []string) error {
	next, cut := fault{}, false
	switch {
	case len(words) == 1 && words[0] == "cut":
		p.cut()
		return nil
	case len(words) == 2 && words[0] == "hush":
		p.hush(words[1])
		return nil
	case len(words) == 1 && words[0] == "pass":
	case len(words) == 1 && words[0] == "freeze":
		next.frozen = true
	case len(words) == 1 && words[0] == "refuse":
		next.refuse, cut = true, true
	case len(words) == 1 && words[0] == "expired":
		next.expired, cut = true, true
	case len(words) == 2 && words[0] == "delay":
		seconds, err := strconv.ParseFloat(words[1], 64)
		if err != nil || seconds < 0 {
			return fmt.Errorf("%q is no number of seconds", words[1])
		}
		next.delay = time.Duration(seconds * float64(time.Second))
	case len(words) == 2 && words[0] == "status":
		code, err := strconv.Atoi(words[1])
		if err != nil || code < 400 || code > 599 {
			return fmt.Errorf("%q is no status code of a failure", words[1])
		}
		next.status = code
	default:
		return errors.New("unknown command: pass, delay SECONDS, status CODE, freeze, refuse, expired, cut, hush RESOURCE")
	}
	p.lock.Lock()
	p.fault = next
	close(p.changed)
	p.changed = make(chan struct{})
	p.lock.Unlock()
	if next.refuse {
		p.close()
	} else if err := p.open(); err != nil {
		return err
	}
	if cut {
		p.cut()
	}
	return nil
}
