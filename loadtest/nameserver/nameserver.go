// Package nameserver is a DNS server for tests that answers as it is told, name by
// name: other addresses at each question, errors, aliases, answers that come late,
// are too large, or do not come at all.
//
// Goroutines: the servers', for UDP and TCP, which the test's end ends.
package nameserver

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Answer is what the server does with one question for a name. The zero value
// says that the name has no address.
type Answer struct {
	// Addrs are IPv4 and IPv6 addresses; a question gets those of its type.
	Addrs []string
	// Alias is the name's canonical one. Its own answer comes along, as a recursive server's does.
	Alias string
	// Code is DNS's own, such as dns.RcodeNameError.
	Code int
	// Delay passes before the answer.
	Delay time.Duration
	// Silent gives no answer at all.
	Silent bool
	// Garbled sends bytes that are no answer.
	Garbled bool
}

// Addrs answers with addresses.
func Addrs(texts ...string) Answer { return Answer{Addrs: texts} }

// Server is a running nameserver.
type Server struct {
	addr   string
	ending chan struct{} // closed at the end, and cuts delays short

	mu      sync.Mutex // guards the below
	answers map[string][]Answer
	asked   map[question]int
}

// question is what is counted: a resolver asks for both types at once, and each
// is to get the answer of its turn.
type question struct {
	name string
	kind uint16
}

// listen returns sockets of one port: one that is free for UDP may be in use for TCP.
func listen(t testing.TB, addr string) (packets net.PacketConn, ln net.Listener) {
	t.Helper()
	var err error
	for range 20 {
		if packets, err = (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", addr); err != nil {
			break
		}
		if ln, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", packets.LocalAddr().String()); err == nil {
			return packets, ln
		}
		_ = packets.Close()
	}
	t.Fatalf("listening on %s: %v", addr, err)
	return nil, nil
}

// Start starts a nameserver that ends with the test, on an address such as
// 127.0.0.1:0. Names that it was not told of do not exist, unless it was told of "*".
func Start(t testing.TB, addr string) *Server {
	t.Helper()
	packets, ln := listen(t, addr)
	s := &Server{addr: packets.LocalAddr().String(), ending: make(chan struct{}), answers: map[string][]Answer{}, asked: map[question]int{}}
	servers := []*dns.Server{{PacketConn: packets, Handler: s}, {Listener: ln, Handler: s}}
	var all sync.WaitGroup
	for _, server := range servers {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		all.Go(func() {
			if err := server.ActivateAndServe(); err != nil {
				t.Errorf("serving names: %v", err)
			}
		})
		<-started
	}
	t.Cleanup(func() {
		close(s.ending)
		for _, server := range servers {
			if err := server.Shutdown(); err != nil {
				t.Errorf("ending the nameserver: %v", err)
			}
		}
		all.Wait()
	})
	return s
}

// Addr is where the server listens, host:port, by UDP and TCP.
func (s *Server) Addr() string { return s.addr }

// Resolver is Go's own resolver, as the sender has it, that asks this server alone.
func (s *Server) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, s.addr)
		if err != nil {
			return nil, fmt.Errorf("reaching the test's nameserver: %w", err)
		}
		return conn, nil
	}}
}

// Answers sets what a name's questions get, of each type in turn; the last is repeated.
func (s *Server) Answers(name string, answers ...Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[name] = slices.Clone(answers)
}

// Asked is how often a name's IPv4 addresses were asked for.
func (s *Server) Asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[question{name, dns.TypeA}]
}

// ServeDNS answers one question.
func (s *Server) ServeDNS(w dns.ResponseWriter, asked *dns.Msg) {
	q := asked.Question[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	answer := s.next(name, q.Qtype)
	if answer.Silent {
		return
	}
	if answer.Delay > 0 {
		select {
		case <-time.After(answer.Delay):
		case <-s.ending:
			return
		}
	}
	if answer.Garbled {
		header, err := asked.Pack()
		if err != nil {
			return
		}
		_, _ = w.Write(append(header[:2], strings.Repeat("\xc0\xff", 100)...)) // the asker's loss
		return
	}
	reply := new(dns.Msg).SetRcode(asked, answer.Code)
	reply.RecursionAvailable, reply.Compress = true, true
	reply.Answer = s.records(name, answer, q.Qtype)
	if _, isUDP := w.RemoteAddr().(*net.UDPAddr); isUDP {
		size := dns.MinMsgSize
		if edns := asked.IsEdns0(); edns != nil {
			size = int(edns.UDPSize())
		}
		reply.Truncate(size) // the asker comes again by TCP
	}
	_ = w.WriteMsg(reply) // the asker's loss
}

// next is the answer whose turn it is.
func (s *Server) next(name string, kind uint16) Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	answers, ok := s.answers[name]
	if !ok {
		answers = s.answers["*"]
	}
	n := s.asked[question{name, kind}]
	s.asked[question{name, kind}]++
	if len(answers) == 0 {
		return Answer{Code: dns.RcodeNameError}
	}
	return answers[min(n, len(answers)-1)]
}

func (s *Server) records(name string, answer Answer, kind uint16) (records []dns.RR) {
	head := dns.RR_Header{Name: name + ".", Class: dns.ClassINET}
	if answer.Alias != "" {
		head.Rrtype = dns.TypeCNAME
		return append([]dns.RR{&dns.CNAME{Hdr: head, Target: answer.Alias + "."}}, s.records(answer.Alias, s.next(answer.Alias, kind), kind)...)
	}
	head.Rrtype = kind
	for _, text := range answer.Addrs {
		ip := net.ParseIP(text)
		isIPv6 := strings.Contains(text, ":") // also where it holds an IPv4 address
		switch {
		case kind == dns.TypeA && !isIPv6:
			records = append(records, &dns.A{Hdr: head, A: ip})
		case kind == dns.TypeAAAA && isIPv6:
			records = append(records, &dns.AAAA{Hdr: head, AAAA: ip})
		}
	}
	return records
}
