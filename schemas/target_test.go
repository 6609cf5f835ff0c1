package schemas

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func mustPolicy(t testing.TB, allow ...string) TargetPolicy {
	t.Helper()
	p, err := ParseTargetPolicy(allow)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// maliciousLiterals are ways to write an address that no webhook may call,
// collected from published bypasses of such guards.
func maliciousLiterals() []string {
	return []string{
		// Loopback and "this host", in every notation that some resolver reads.
		"127.0.0.1", "127.0.0.1.", "127.255.255.254", "127.1", "127.0.1", "0177.0.0.1", "0177.0.0.01", "017700000001",
		"0x7f.0.0.1", "0x7f.1", "0x7f000001", "0X7F000001", "2130706433", "127.0.0.0x1", "127.0.0.01", "00127.0.0.1",
		"0", "0.0.0.0", "0.1.2.3", "00000000000", "0x0", "1.1.1.0x", "256.256.256.256", "1.2.3", "1.2.3.4.5", "4294967297",
		"[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[::7f00:1]",
		"[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]",
		"１２７.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "127．0．0．1", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
		// Metadata services.
		"169.254.169.254", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[fd00:ec2::254]", "0xa9fea9fe", "2852039166",
		"0251.0376.0251.0376", "100.100.100.200", "168.63.129.16", "192.0.0.192", "metadata.google.internal", "metadata",
		// Private, shared and reserved ranges.
		"10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "100.127.255.255",
		"192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1",
		"224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"[fe80::1]", "[fe80::1%25eth0]", "[fe80::1%eth0]", "[fec0::1]", "[fc00::1]", "[fd12:3456::1]", "[ff02::1]",
		"[100::1]", "[2001::1]", "[2001:db8::1]", "[2001:10::1]", "[2002:a00:1::1]", "[3fff::1]", "[3fff:fff::1]", "[5f00::1]",
		"[4000::1]", "[1fff::1]", "[::1", "::1", "[]", "[127.0.0.1]", "[::1]x",
		// Names that are local by their form.
		"localhost", "LOCALHOST", "localhost.", "a.localhost", "printer.local", "db.internal", "router.home.arpa", "home.arpa", "intranet",
		// Hosts that two parsers read as two hosts.
		"example.com%00.evil.test", "example.com%2eevil.test", "127.0.0.1%2f.example.com", "example.com,127.0.0.1",
		"exa\u200bmple.com", "exam\u00adple.com", "example\u2060.com", "exa\ufe0fmple.com", "example.com\u2100.org", "ex\u180eample.com",
		"example..com", ".example.com", "example.com..", ".", "..", "-a.example.com", "a-.example.com", "xn--.example.com",
		"xn--localhost-.example.com", "xn--a.example.com", "a'b.example.com", "a$b.example.com", "a;b.example.com", "a&b.example.com", "*.example.com", "",
		strings.Repeat("a", 64) + ".example.com", strings.Repeat("a.", 127) + "com",
	}
}

func TestMaliciousLiteralsAreRefused(t *testing.T) {
	var p TargetPolicy
	for _, host := range maliciousLiterals() {
		for _, form := range []string{"https://%s/", "https://%s", "https://%s:8443/path?q=1", "HTTPS://%s/"} {
			raw := fmt.Sprintf(form, host)
			target, err := p.ParseTarget(raw)
			if _, refused := errors.AsType[*TargetError](err); !refused {
				t.Errorf("ParseTarget(%q) = %+v, %v, want a TargetError", raw, target, err)
			}
		}
	}
}

type targetRule struct {
	raw  string
	want TargetCode
}

func schemeRules() []targetRule {
	return []targetRule{
		{"", TargetEmpty},
		{"https://example.com/" + strings.Repeat("a", MaxTargetBytes), TargetTooLong},
		{"https://example.com?" + strings.Repeat("a", MaxTargetBytes-len("https://example.com?")), TargetTooLong},
		{"example.com/hook", TargetScheme},
		{"//example.com/hook", TargetScheme},
		{"https:example.com", TargetScheme},
		{"https:/example.com", TargetScheme},
		{"javascript:alert(1)", TargetScheme},
		{"javascript://example.com/%0aalert(1)", TargetScheme},
		{"ftp://example.com/", TargetScheme},
		{"file:///etc/passwd", TargetScheme},
		{"gopher://example.com/", TargetScheme},
		{"unix:///run/docker.sock", TargetScheme},
		{" https://example.com/", TargetScheme},
		{"\thttps://example.com/", TargetScheme},
		{"https://", TargetHost},
		{"https:///path", TargetHost},
		{"https://?q", TargetHost},
		{"https://:443/", TargetHost},
		{"http://example.com/", TargetPlainHTTP},
		{"http://93.184.216.34/", TargetPlainHTTP},
	}
}

func textRules() []targetRule {
	return []targetRule{
		{"https://user@example.com/", TargetUserinfo},
		{"https://user:secret@example.com/", TargetUserinfo},
		{"https://@example.com/", TargetUserinfo},
		{"https://example.com@127.0.0.1/", TargetUserinfo},
		{"https://example.com#@127.0.0.1/", TargetFragment},
		{"https://example.com/#/hooks", TargetFragment},
		{"https://example.com\\@127.0.0.1/", TargetUserinfo},
		{"https://example.com\\.evil.test/", TargetCharacter},
		{"https://example.com/a\\b", TargetCharacter},
		{"https://example.com/a b", TargetCharacter},
		{"https://exam ple.com/", TargetCharacter},
		{"https://example.com/ ", TargetCharacter},
		{"https://example.com/\r\nHost: 127.0.0.1", TargetCharacter},
		{"https://example.com\r\n/", TargetCharacter},
		{"https://example.com/\x00", TargetCharacter},
		{"https://example.com/\x7f", TargetCharacter},
		{"https://example.com/ä", TargetCharacter},
		{"https://example.com/\u200b", TargetCharacter},
		{"https://exam\xffple.com/", TargetCharacter},
		{"https://exam\u200dple.com/", TargetCharacter},
		{"https://example.com%2f/", TargetCharacter},
		{"https://a,b.example.com/", TargetCharacter},
	}
}

func hostAndPortRules() []targetRule {
	return []targetRule{
		{"https://example.com:0/", TargetPort},
		{"https://example.com:65536/", TargetPort},
		{"https://example.com:99999999999/", TargetPort},
		{"https://example.com:/", TargetPort},
		{"https://example.com:+443/", TargetPort},
		{"https://example.com:-1/", TargetPort},
		{"https://example.com:0443/", TargetPort},
		{"https://example.com:4_43/", TargetPort},
		{"https://example.com:443:443/", TargetPort},
		{"https://example.com:https/", TargetPort},
		{"https://example.com:22/", TargetPortBlocked},
		{"https://example.com:25/", TargetPortBlocked},
		{"https://example.com:4190/", TargetPortBlocked},
		{"https://example.com:6679/", TargetPortBlocked},
		{"https://example.com:10080/", TargetPortBlocked},
		{"https://localhost/", TargetName},
		{"https://foo.localhost/", TargetName},
		{"https://kafka/", TargetName},
		{"https://svc.ns.internal/", TargetName},
		{"https://127.0.0.1/", TargetAddress},
		{"https://[::1]/", TargetAddress},
		{"https://[::ffff:10.0.0.1]/", TargetAddress},
		{"https://127.1/", TargetHost},
		{"https://0x7f000001/", TargetHost},
		{"https://[fe80::1%eth0]/", TargetHost},
		{"https://[::1]443/", TargetHost},
		{"https://2001:db8::1/", TargetPort},
	}
}

func TestParseTargetRules(t *testing.T) {
	var p TargetPolicy
	for _, tt := range slices.Concat(schemeRules(), textRules(), hostAndPortRules()) {
		target, err := p.ParseTarget(tt.raw)
		var refused *TargetError
		if !errors.As(err, &refused) {
			t.Errorf("ParseTarget(%q) = %+v, %v, want %s", tt.raw, target, err, tt.want)
			continue
		}
		if refused.Code != tt.want {
			t.Errorf("ParseTarget(%q): code %s (%s), want %s", tt.raw, refused.Code, refused.Detail, tt.want)
		}
	}
}

func TestParseTargetCanonical(t *testing.T) {
	tests := []struct{ raw, url, host, authority, path string }{
		{"https://example.com", "https://example.com/", "example.com", "example.com", "/"},
		{"HTTPS://EXAMPLE.Com:443/A/b", "https://example.com/A/b", "example.com", "example.com", "/A/b"},
		{"https://example.com.:8443/", "https://example.com:8443/", "example.com", "example.com:8443", "/"},
		{"https://example.com?a=b", "https://example.com/?a=b", "example.com", "example.com", "/?a=b"},
		{"https://example.com//a/../b/./%2e%2E/?x=%zz&y=@:/?", "https://example.com//a/../b/./%2e%2E/?x=%zz&y=@:/?", "example.com", "example.com", "//a/../b/./%2e%2E/?x=%zz&y=@:/?"},
		{"https://example.com/a,b;c=1{}|^`\"<>", "https://example.com/a,b;c=1{}|^`\"<>", "example.com", "example.com", "/a,b;c=1{}|^`\"<>"},
		{"https://bücher.example/", "https://xn--bcher-kva.example/", "xn--bcher-kva.example", "xn--bcher-kva.example", "/"},
		{"https://BÜCHER.example/", "https://xn--bcher-kva.example/", "xn--bcher-kva.example", "xn--bcher-kva.example", "/"},
		{"https://faß.de/", "https://xn--fa-hia.de/", "xn--fa-hia.de", "xn--fa-hia.de", "/"},
		{"https://例え。テスト/", "https://xn--r8jz45g.xn--zckzah/", "xn--r8jz45g.xn--zckzah", "xn--r8jz45g.xn--zckzah", "/"},
		{"https://ｅｘａｍｐｌｅ.com/", "https://example.com/", "example.com", "example.com", "/"},
		{"https://r3---sn-apo3qvuoxuxbt-j5pe.example.com/", "https://r3---sn-apo3qvuoxuxbt-j5pe.example.com/", "r3---sn-apo3qvuoxuxbt-j5pe.example.com", "r3---sn-apo3qvuoxuxbt-j5pe.example.com", "/"},
		{"https://my_hook.example.com/", "https://my_hook.example.com/", "my_hook.example.com", "my_hook.example.com", "/"},
		{"https://1.example.com/", "https://1.example.com/", "1.example.com", "1.example.com", "/"},
		{"https://0x7f.example.com/", "https://0x7f.example.com/", "0x7f.example.com", "0x7f.example.com", "/"},
		{"https://127.0.0.1.nip.io/", "https://127.0.0.1.nip.io/", "127.0.0.1.nip.io", "127.0.0.1.nip.io", "/"},
		{"https://notlocalhost.com/", "https://notlocalhost.com/", "notlocalhost.com", "notlocalhost.com", "/"},
		{"https://internal.example.com/", "https://internal.example.com/", "internal.example.com", "internal.example.com", "/"},
		{"https://8.8.8.8/", "https://8.8.8.8/", "8.8.8.8", "8.8.8.8", "/"},
		{"https://[2606:4700:0:0::1111]:8443/x", "https://[2606:4700::1111]:8443/x", "2606:4700::1111", "[2606:4700::1111]:8443", "/x"},
		{"https://[::ffff:8.8.8.8]/", "https://8.8.8.8/", "8.8.8.8", "8.8.8.8", "/"},
		{"https://[64:ff9b::8.8.8.8]/", "https://[64:ff9b::808:808]/", "64:ff9b::808:808", "[64:ff9b::808:808]", "/"},
		{"https://example.com:80/", "https://example.com:80/", "example.com", "example.com:80", "/"},
		{"https://example.com:65535/", "https://example.com:65535/", "example.com", "example.com:65535", "/"},
		{"https://" + strings.Repeat("a", 63) + ".example.com/", "https://" + strings.Repeat("a", 63) + ".example.com/", strings.Repeat("a", 63) + ".example.com", strings.Repeat("a", 63) + ".example.com", "/"},
	}
	var p TargetPolicy
	for _, tt := range tests {
		got, err := p.ParseTarget(tt.raw)
		if err != nil {
			t.Errorf("ParseTarget(%q): %v", tt.raw, err)
			continue
		}
		if got.URL != tt.url || got.Host != tt.host || got.Authority != tt.authority || got.Path != tt.path {
			t.Errorf("ParseTarget(%q) = %+v, want %+v", tt.raw, got, tt)
		}
	}
}

// TestNeighboursPass guards against refusing more than the tables say: the
// addresses next to each denied range are other people's, and public.
func TestNeighboursPass(t *testing.T) {
	var p TargetPolicy
	for _, text := range []string{
		"1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
		"169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.1.255", "192.0.3.0",
		"192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255",
		"198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255", "168.63.129.15", "168.63.129.17",
		"2000::", "2001:200::", "2001:db7:ffff::1", "2001:db9::", "2001:ffff::1", "2003::", "3ffe:ffff::1", "3fff:1000::", "3fff:ffff::1",
		"2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1",
	} {
		addr := netip.MustParseAddr(text)
		if !p.Allows(addr, "example.com") {
			t.Errorf("Allows(%s) = false, want true", text)
		}
		host := text
		if addr.Is6() {
			host = "[" + text + "]"
		}
		if _, err := p.ParseTarget("https://" + host + "/"); err != nil {
			t.Errorf("ParseTarget of %s: %v", host, err)
		}
	}
}

func TestDeniedRangesAtTheirEnds(t *testing.T) {
	var p TargetPolicy
	for _, prefix := range append(append([]netip.Prefix{
		netip.MustParsePrefix("::/16"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("ff00::/8"),
	}, deniedIPv4...), deniedIPv6...) {
		first, last := prefix.Masked().Addr(), lastAddr(prefix)
		for _, addr := range []netip.Addr{first, last} {
			if p.Allows(addr, "example.com") {
				t.Errorf("Allows(%s) of %s = true, want false", addr, prefix)
			}
		}
		if !first.Is4() {
			continue
		}
		for _, embedded := range []string{"::ffff:" + first.String(), "64:ff9b::" + last.String()} {
			if p.Allows(netip.MustParseAddr(embedded), "example.com") {
				t.Errorf("Allows(%s) = true, want false", embedded)
			}
		}
	}
	for _, addr := range []netip.Addr{{}, netip.MustParseAddr("2606:4700::1%eth0")} {
		if p.Allows(addr, "example.com") {
			t.Errorf("Allows(%q) = true, want false", addr)
		}
	}
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

func TestAllowedTargets(t *testing.T) {
	p := mustPolicy(t, "127.0.0.0/8", " 10.1.0.0/16", "fd00::/8", "192.168.7.7", "::1", "localhost", "Receiver", "hooks.internal.", "bücher.local")
	for _, raw := range []string{
		"http://127.0.0.1:9999/", "https://127.0.0.1/", "http://10.1.2.3/x", "http://[fd00::1]:81/", "http://192.168.7.7/", "http://[::1]/",
		"http://[::ffff:127.0.0.1]/", "http://localhost:8080/", "https://localhost/", "http://LOCALHOST./", "http://receiver/",
		"https://hooks.internal/", "http://xn--bcher-kva.local/", "https://example.com/",
	} {
		if _, err := p.ParseTarget(raw); err != nil {
			t.Errorf("ParseTarget(%q): %v", raw, err)
		}
	}
	for raw, want := range map[string]TargetCode{
		"http://10.2.0.1/":         TargetAddress,
		"https://192.168.7.8/":     TargetAddress,
		"https://169.254.169.254/": TargetAddress,
		"http://example.com/":      TargetPlainHTTP,
		"http://8.8.8.8/":          TargetPlainHTTP,
		"https://a.localhost/":     TargetName,
		"https://other.internal/":  TargetName,
		"http://127.1/":            TargetHost,
		"http://localhost:22/":     TargetPortBlocked,
	} {
		_, err := p.ParseTarget(raw)
		var refused *TargetError
		if !errors.As(err, &refused) || refused.Code != want {
			t.Errorf("ParseTarget(%q): %v, want %s", raw, err, want)
		}
	}
}

func TestAllows(t *testing.T) {
	p := mustPolicy(t, "10.1.0.0/16", "receiver")
	tests := []struct {
		addr, host string
		want       bool
	}{
		{"10.1.2.3", "example.com", true},
		{"::ffff:10.1.2.3", "example.com", true},
		{"10.2.0.1", "example.com", false},
		{"10.2.0.1", "receiver", true},
		{"127.0.0.1", "receiver", true},
		{"::1", "receiver", true},
		{"fd00::1", "receiver", true},
		{"169.254.169.254", "receiver", false},
		{"fe80::1", "receiver", false},
		{"0.0.0.0", "receiver", false},
		{"168.63.129.16", "receiver", false},
		{"8.8.8.8", "receiver", true},
		{"8.8.8.8", "example.com", true},
		{"127.0.0.1", "", false},
	}
	for _, tt := range tests {
		if got := p.Allows(netip.MustParseAddr(tt.addr), tt.host); got != tt.want {
			t.Errorf("Allows(%s, %q) = %t, want %t", tt.addr, tt.host, got, tt.want)
		}
	}
}

func TestParseTargetPolicyTellsAllProblems(t *testing.T) {
	bad := []string{"10.0.0.1/8", "10.0.0.0/33", "::ffff:10.0.0.0/104", "", "http://localhost", "localhost:8080", "[::1]", "127.1", "fe80::1%eth0", "a b", "x/y"}
	_, err := ParseTargetPolicy(append([]string{"127.0.0.0/8"}, bad...))
	if err == nil {
		t.Fatal("got no error")
	}
	for _, entry := range bad {
		if !strings.Contains(err.Error(), fmt.Sprintf("%q", entry)) {
			t.Errorf("error does not name %q: %v", entry, err)
		}
	}
	if strings.Contains(err.Error(), "127.0.0.0/8") {
		t.Errorf("error names a good entry: %v", err)
	}
}

// FuzzParseTarget holds what every accepted target promises: its canonical form
// is a fixed point, speaks of one host only, and passes the address policy.
func FuzzParseTarget(f *testing.F) {
	for _, host := range maliciousLiterals() {
		f.Add("https://" + host + "/a?b")
	}
	for _, raw := range []string{"http://127.0.0.1:8080/x", "https://bücher.example:8443//a/%2e?b", "https://[2606:4700::1]/", "http://localhost"} {
		f.Add(raw)
	}
	policies := []TargetPolicy{{}, mustPolicy(f, "127.0.0.0/8", "localhost")}
	f.Fuzz(func(t *testing.T, raw string) {
		for _, p := range policies {
			got, err := p.ParseTarget(raw)
			if err != nil {
				var refused *TargetError
				if !errors.As(err, &refused) || refused.Code == "" || refused.Detail == "" {
					t.Fatalf("ParseTarget(%q): %v is no TargetError", raw, err)
				}
				continue
			}
			again, err := p.ParseTarget(got.URL)
			if err != nil || again != got {
				t.Fatalf("ParseTarget(%q) = %+v, but again %+v, %v", raw, got, again, err)
			}
			for i := range len(got.URL) {
				if c := got.URL[i]; c <= ' ' || c >= 0x7f || c == '\\' || c == '#' {
					t.Fatalf("ParseTarget(%q): byte 0x%02x in %q", raw, c, got.URL)
				}
			}
			if strings.ContainsAny(got.Host, "@/?#%,[]") || !strings.HasSuffix(raw, strings.TrimPrefix(got.Path, "/")) {
				t.Fatalf("ParseTarget(%q) = %+v", raw, got)
			}
			if got.Addr.IsValid() && !p.Allows(got.Addr, got.Host) {
				t.Fatalf("ParseTarget(%q): address %s is denied", raw, got.Addr)
			}
		}
	})
}
