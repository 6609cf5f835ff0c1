package hostile

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/postrider/postrider/loadtest/nameserver"
	"github.com/postrider/postrider/loadtest/receiver"
	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/sender/deliver"
)

// lie is a name whose owner is no friend. Public stands for an address that may be
// called, 127.0.0.2, where nothing listens: a refused connection was an attempt at it.
type lie struct {
	name    string
	answers []nameserver.Answer
	want    []deliver.Reason // of one attempt after the other
	late    bool             // the attempt's end is its deadline
	twice   bool             // Go's resolver asks twice: after an error, and by TCP where the answer is large
}

const public = "127.0.0.2"

func lies() []lie {
	const denied, refused, failed, timeout = deliver.ReasonEgressDenied, deliver.ReasonConnectRefused, deliver.ReasonDNSFailed, deliver.ReasonDNSTimeout
	addrs := nameserver.Addrs
	many := make([]string, 0, 2000)
	for i := range cap(many) {
		many = append(many, fmt.Sprintf("127.0.2.%d", i%256))
	}
	twice := func(l lie) lie {
		l.twice = true
		return l
	}
	one := func(name string, want deliver.Reason, answers ...nameserver.Answer) lie {
		return lie{name: name, answers: answers, want: []deliver.Reason{want}}
	}
	return []lie{
		{name: "rebinding", answers: []nameserver.Answer{addrs(public), addrs("127.0.0.1")}, want: []deliver.Reason{refused, denied}},
		{name: "flips", answers: []nameserver.Answer{addrs("10.0.0.1"), addrs(public), addrs("::1"), addrs(public), {Code: dns.RcodeNameError}, addrs("127.0.0.1")}, want: []deliver.Reason{denied, refused, denied, refused, failed, denied}},
		one("a private address among public ones", denied, addrs(public, "127.0.0.1", public)),
		one("public by IPv4, private by IPv6", denied, addrs(public, "::1")),
		one("metadata", denied, addrs("169.254.169.254")),
		one("metadata by IPv6", denied, addrs("fd00:ec2::254")),
		one("unspecified", denied, addrs("0.0.0.0")),
		one("unspecified by IPv6", denied, addrs("::")),
		one("mapped", denied, addrs("::ffff:127.0.0.1")),
		one("mapped metadata", denied, addrs("::ffff:169.254.169.254")),
		one("compatible", denied, addrs("::127.0.0.1")),
		one("NAT64", denied, addrs("64:ff9b::127.0.0.1")),
		one("local NAT64", denied, addrs("64:ff9b:1::7f00:1")),
		one("6to4", denied, addrs("2002:7f00:1::1")),
		one("Teredo", denied, addrs("2001:0:7f00:1::1")),
		one("link-local", denied, addrs("fe80::1")),
		one("alias of a private name", denied, nameserver.Answer{Alias: "private.example.net"}),
		one("alias of an alias", denied, nameserver.Answer{Alias: "alias.example.net"}),
		one("alias of itself", failed, nameserver.Answer{Alias: "nowhere.example.net"}),
		one("no such name", failed),
		one("no address", failed, nameserver.Answer{}),
		twice(one("SERVFAIL", failed, nameserver.Answer{Code: dns.RcodeServerFailure})),
		twice(one("REFUSED", failed, nameserver.Answer{Code: dns.RcodeRefused})),
		twice(one("huge answer", refused, addrs(many...))),
		twice(one("huge answer with a private end", denied, addrs(append(many, "127.0.0.1")...))),
		one("slow", refused, nameserver.Answer{Addrs: []string{public}, Delay: 300 * time.Millisecond}),
		{name: "slower than the attempt", answers: []nameserver.Answer{{Addrs: []string{public}, Delay: time.Minute}}, want: []deliver.Reason{timeout}, late: true},
		{name: "never", answers: []nameserver.Answer{{Silent: true}}, want: []deliver.Reason{timeout}, late: true},
	}
}

// TestNamesThatLie asks a nameserver that is the target's own. Whatever it says,
// the attempt ends by its deadline with a reason, and nobody comes to the port on
// an address that the policy forbids.
func TestNamesThatLie(t *testing.T) {
	door := receiver.StartRaw(t, nil, nil, func(p *receiver.Peer) { p.ReadRequest() })
	_, port, err := net.SplitHostPort(door.Addr())
	if err != nil {
		t.Fatal(err)
	}
	names := nameserver.Start(t, "127.0.0.1:0")
	names.Answers("private.example.net", nameserver.Addrs("127.0.0.1"))
	names.Answers("alias.example.net", nameserver.Answer{Alias: "private.example.net"})
	allowed, err := schemas.ParseTargetPolicy([]string{public, "127.0.2.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	client := deliver.New(deliver.Config{Policy: allowed, Resolver: names.Resolver()})
	t.Cleanup(client.Close)
	for i, l := range lies() {
		t.Run(l.name, func(t *testing.T) {
			name := fmt.Sprintf("lie%d.example.com", i)
			names.Answers(name, l.answers...)
			for n, want := range l.want {
				r := request("https://" + name + ":" + port + "/")
				if l.late {
					r.Timeout = 500 * time.Millisecond
				}
				a := client.Do(t.Context(), r)
				if a.Reason != want || a.StatusCode != 0 {
					t.Errorf("attempt %d: reason %q, status %d, want %q", n+1, a.Reason, a.StatusCode, want)
				}
				if a.Duration > r.Timeout+r.Timeout/10+slack {
					t.Errorf("attempt %d: took %s, want at most %s", n+1, a.Duration, r.Timeout)
				}
				if got := names.Asked(name); got != n+1 && !l.late && !l.twice {
					t.Errorf("attempt %d: the name was resolved %d times so far, want once an attempt", n+1, got)
				}
			}
		})
	}
	if n := door.Conns(); n != 0 {
		t.Errorf("%d connections to the forbidden address, want none", n)
	}
}

// TestGarbledNames has answers that are none: Go's resolver waits for a better one.
func TestGarbledNames(t *testing.T) {
	names := nameserver.Start(t, "127.0.0.1:0")
	names.Answers("garbled.example.com", nameserver.Answer{Garbled: true})
	client := deliver.New(deliver.Config{Resolver: names.Resolver()})
	t.Cleanup(client.Close)
	r := request("https://garbled.example.com/")
	r.Timeout = 500 * time.Millisecond
	a := client.Do(t.Context(), r)
	if a.Reason != deliver.ReasonDNSTimeout && a.Reason != deliver.ReasonDNSFailed || a.Duration > r.Timeout+slack {
		t.Errorf("reason %q after %s, want %q or %q", a.Reason, a.Duration, deliver.ReasonDNSFailed, deliver.ReasonDNSTimeout)
	}
}
