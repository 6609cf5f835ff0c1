package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/postrider/postrider/loadtest/nameserver"
	"github.com/postrider/postrider/loadtest/pipeline"
)

// namespaceVariable tells the test binary that it runs in the namespace.
const namespaceVariable = "POSTRIDER_TEST_NAMESPACE"

// namespace makes every address the machine's own, and the test's the only nameserver.
const namespace = `
ip link set lo up
ip route add local 0.0.0.0/0 dev lo
ip -6 route add local ::/0 dev lo
mount --bind "$1" /etc/resolv.conf
shift
exec "$@"`

// TestEgressEverywhere is P8 on a network where every address there is leads to
// the test: it runs again in a network namespace, services and all. What is
// forbidden goes through REST and straight into the topic, and nobody may come;
// what is next to it must be called.
func TestEgressEverywhere(t *testing.T) {
	if os.Getenv(namespaceVariable) != "" {
		testEgressEverywhere(t)
		return
	}
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "sh", "-ec", namespace, "sh", resolv, "true").CombinedOutput(); err != nil {
		t.Fatalf("making a network namespace: %v\n%s\nThe test needs Linux with IPv6, root (or CAP_NET_ADMIN and CAP_SYS_ADMIN), and the programs unshare, mount and ip.", err, out)
	}
	again := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "sh", "-ec", namespace, "sh", resolv,
		os.Args[0], "-test.run=^TestEgressEverywhere$", "-test.v", "-test.timeout=3m")
	again.Env = append(os.Environ(), namespaceVariable+"=1")
	again.Cancel = func() error { return again.Process.Signal(os.Interrupt) } // its processes end with it
	again.WaitDelay = 10 * time.Second
	out, err := again.CombinedOutput()
	if err != nil {
		t.Fatalf("in the namespace: %v\n%s", err, out)
	}
	t.Logf("in the namespace:\n%s", out)
}

func testEgressEverywhere(t *testing.T) {
	t.Helper()
	c := startCanary(t)
	t.Setenv("SSL_CERT_FILE", c.authority) // the services trust it
	names := startNames(t)
	cluster, prefix := pipeline.SharedKafka(t)
	s := prepare(t, cluster, prefix, pipeline.SharedClickHouse(t))
	s.startIngest(t, "ingest-1") // no target is allowed beyond the public ones
	s.startSender(t, "sender-1", "--retry-schedule=1s")
	s.router = pipeline.Start(t, "router", join(s.common(), nil, "--instance=router-1")...)
	for _, service := range s.services() {
		service.WaitReady(t)
	}

	texts := forbiddenTexts()
	for _, url := range texts {
		body := fmt.Sprintf(`{"organization":"acme","url":%q,"events":"*"}`, url)
		if a := s.call(t, http.MethodPost, "/webhook-events", body); a.Status != http.StatusUnprocessableEntity {
			t.Errorf("REST took %q: %d %s", url, a.Status, a.Body)
		}
	}
	// Names are nothing that REST can refuse: where they lead is seen at the attempt.
	planted := slices.Concat(texts, names)
	s.write(t, planted)
	good, want := neighbours()
	for _, url := range good {
		s.want(t, http.StatusCreated, http.MethodPost, "/webhook-events", fmt.Sprintf(`{"organization":"acme","active":true,"url":%q,"events":"*"}`, url))
	}
	defer c.check(t, append(want, first, redirecting)) // also where the outcomes are not as they should be
	id := s.post(t, `{"event":"a.b","organization":"acme"}`)

	s.waitQuery(t, `SELECT uniqExact(webhook_id), countIf(result = 'delivered'), countIf(result = 'dead') FROM postrider.outcomes WHERE event_id = '`+id+`'`,
		fmt.Sprintf("%d\t%d\t%d", len(planted)+len(good), len(good), len(planted)))
	reasons := s.query(t, `SELECT reason, count() FROM postrider.outcomes WHERE event_id = '`+id+`' AND result = 'dead' GROUP BY reason ORDER BY reason`)
	for line := range strings.Lines(reasons) {
		reason, count, _ := strings.Cut(strings.TrimSpace(line), "\t")
		// On a busy machine some of the names that are asked for at once get no answer; most do.
		if !slices.Contains([]string{"invalid_target", "egress_denied", "dns_failed", "dns_timeout", "redirect"}, reason) {
			t.Errorf("deliveries died of %q", line)
		}
		if n, err := strconv.Atoi(count); reason == "egress_denied" && (err != nil || n < len(names)/2) {
			t.Errorf("%s of %d names were refused for where they lead, want half of them at least", count, len(names))
		}
	}
	if !strings.Contains(reasons, "egress_denied") {
		t.Error("no name was refused for where it leads")
	}
	t.Logf("%d forbidden targets through REST, %d in the topic, %d neighbours; dead of:\n%s", len(texts), len(planted), len(good), reasons)
}

// The public addresses that names of the test's have: at first is one that then
// becomes private, and at redirecting one that sends its callers elsewhere. Whoever
// comes to stray has read a forbidden URL as a name that stands in it.
const first, redirecting, stray = "11.0.0.1", "11.0.0.2", "11.0.0.3"

// forbiddenAddrs are of each forbidden range, and the services of clouds.
func forbiddenAddrs() []string {
	return strings.Fields(`0.0.0.0 0.1.2.3 10.0.0.0 10.0.0.1 10.255.255.255 100.64.0.0 100.64.0.1 100.127.255.255 100.100.100.200 127.0.0.1 127.255.255.254
		168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.0 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1
		192.168.0.0 192.168.0.1 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.1 203.0.113.255 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.254 255.255.255.255
		:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254
		64:ff9b:1::7f00:1 100::1 1fff:ffff::1 2001::1 2001:0:7f00:1::1 2001:1ff::1 2001:db8::1 2002::1 2002:7f00:1::1 2002:a9fe:a9fe::1 3fff::1 3fff:fff:ffff::1
		4000::1 5f00::1 fc00::1 fd00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1`)
}

// forbiddenTexts are URLs that break a rule by themselves.
func forbiddenTexts() (urls []string) {
	for _, text := range forbiddenAddrs() {
		host := literal(text)
		urls = append(urls, "https://"+host+"/", "https://"+host+":8443/", "http://"+host+":8080/")
	}
	for host := range strings.FieldsSeq(`127.1 127.0.1 0177.0.0.1 017700000001 0x7f.0.0.1 0x7f.1 0x7f000001 0X7F000001 2130706433 127.0.0.01 00127.0.0.1 0 0x0
		0xa9fea9fe 2852039166 0251.0376.0251.0376 169.254.43518 10.1 0xa000001 167772161 4294967297 1.2.3.4.5 256.256.256.256 127.0.0.1. 10.0.0.1.
		localhost LOCALHOST localhost. a.localhost metadata metadata.google.internal metadata.google.internal. kafka intranet printer.local router.home.arpa
		１２７.0.0.1 ①②⑦.⓪.⓪.① 127。0。0。1 ⓛⓞⓒⓐⓛⓗⓞⓢⓣ [fe80::1%25lo] [fe80::1%lo] [::1%25lo] [127.0.0.1] ::1 xn--a.example.com example..com .example.com
		example.com%00.evil.test example.com%2eevil.test 127.0.0.1%2f.example.com example.com,127.0.0.1`) {
		urls = append(urls, "https://"+host+"/", "https://"+host+":8443/")
	}
	return append(urls, "https://example.com@127.0.0.1/", "https://127.0.0.1@example.com/", "https://user:pass@example.com/", "https://example.com:443@10.0.0.1/",
		"https://example.com\\@10.0.0.1/", "https://10.0.0.1\\@example.com/", "https://example.com#@10.0.0.1/", "https://[::1]@example.com/",
		"https://example.com:22/", "https://example.com:25/", "https://example.com:0/", "https://example.com:65979/", "https://example.com:0443/", "https://example.com:/",
		"https://example.com:443:22/", "https://11.0.0.3:22/", "http://example.com/", "http://11.0.0.3/", "https:example.com", "https:/example.com/", "https:///example.com/",
		"//example.com/", "example.com", "ftp://example.com/", "gopher://example.com:25/", "file:///etc/passwd", "javascript://example.com/%0aalert(1)", "https://exam\u200bple.com/")
}

// literal is an address as it stands in a URL.
func literal(text string) string {
	if strings.Contains(text, ":") {
		return "[" + text + "]"
	}
	return text
}

// startNames starts the only nameserver there is, and returns URLs of names that lead
// where nobody may go, or nowhere.
func startNames(t *testing.T) (urls []string) {
	t.Helper()
	server := nameserver.Start(t, "127.0.0.1:53")
	server.Answers("*", nameserver.Addrs(stray))
	add := func(answers ...nameserver.Answer) {
		name := fmt.Sprintf("n%d.forbidden.example.org", len(urls))
		server.Answers(name, answers...)
		urls = append(urls, "https://"+name+"/500")
	}
	addrs := nameserver.Addrs
	server.Answers("private.example.org", addrs("10.0.0.1"))
	server.Answers("127.0.0.1.example.org", addrs("127.0.0.1"))
	for _, text := range forbiddenAddrs() {
		add(addrs(text))
		add(addrs("11.0.0.4", text)) // which thereby nobody may call, either
	}
	add(nameserver.Answer{Alias: "private.example.org"})
	add(nameserver.Answer{Code: dns.RcodeNameError})
	add(nameserver.Answer{Code: dns.RcodeServerFailure})
	add(addrs(first), addrs("10.0.0.1"))
	add(addrs(first), addrs("fd00::1"))
	add(addrs(first), addrs(first, "169.254.169.254"))
	server.Answers("redirecting.example.org", addrs(redirecting))
	for i, text := range allowedAddrs() {
		server.Answers(fmt.Sprintf("n%d.allowed.example.org", i), addrs(text))
	}
	server.Answers("xn--bcher-kva.example", addrs("11.0.0.5"))
	return append(urls, "https://redirecting.example.org/302", "https://127.0.0.1.example.org./500", "https://private.example.org.:8443/")
}

// allowedAddrs are next to a forbidden range, on either side.
func allowedAddrs() []string {
	return strings.Fields(`1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.0
		172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.1.255 192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0
		198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255
		2000:: 2000::1 2001:200:: 2001:db7:ffff:ffff:ffff:ffff:ffff:ffff 2001:db9:: 2001:ffff::1 2003:: 3ffe:ffff::1 3fff:1000:: 3fff:ffff::1 64:ff9b::9.255.255.255 64:ff9b::11.0.0.0`)
}

// neighbours are URLs that must be called, by address and by name, and the addresses.
func neighbours() (urls, addrs []string) {
	for i, text := range allowedAddrs() {
		urls = append(urls, "https://"+literal(text)+"/", fmt.Sprintf("https://n%d.allowed.example.org/", i))
	}
	return append(urls, "https://[::ffff:11.0.0.6]/", "https://11.0.0.7:8443/", "https://N0.Allowed.example.org.:8443/x?y=%2e", "https://bücher.example/"),
		append(allowedAddrs(), "11.0.0.5", "11.0.0.6", "11.0.0.7")
}
