package schemas

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// TargetPolicy says which hosts and addresses webhooks may call: every public
// one, and what the operator allowed beyond (--allow-targets). The zero value
// allows public ones only. It is immutable, and safe for concurrent use.
type TargetPolicy struct {
	prefixes []netip.Prefix
	names    map[string]struct{}
}

// ParseTargetPolicy reads the entries of --allow-targets, each a CIDR
// (10.0.0.0/8, fd00::/8), an address, or a host name. All problems are told at once.
func ParseTargetPolicy(allow []string) (TargetPolicy, error) {
	p := TargetPolicy{names: make(map[string]struct{})}
	var problems []error
	for _, entry := range allow {
		if err := p.add(strings.TrimSpace(entry)); err != nil {
			problems = append(problems, fmt.Errorf("reading allowed target %q: %w", entry, err))
		}
	}
	return p, errors.Join(problems...)
}

func (p *TargetPolicy) add(entry string) error {
	if strings.Contains(entry, "/") {
		return p.addPrefix(entry)
	}
	if addr, err := netip.ParseAddr(entry); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		p.prefixes = append(p.prefixes, netip.PrefixFrom(addr, addr.BitLen()))
		return nil
	}
	if entry == "" || strings.ContainsAny(entry, ":[]") {
		return errors.New("neither a CIDR such as 10.0.0.0/8, nor an address, nor a host name without scheme and port")
	}
	name, addr, err := parseHost(entry)
	if err != nil {
		return err
	}
	if addr.IsValid() {
		p.prefixes = append(p.prefixes, netip.PrefixFrom(addr, addr.BitLen()))
		return nil
	}
	p.names[name] = struct{}{}
	return nil
}

func (p *TargetPolicy) addPrefix(entry string) error {
	prefix, err := netip.ParsePrefix(entry)
	if err != nil {
		return errors.New("not a CIDR such as 10.0.0.0/8 or fd00::/8")
	}
	if prefix.Addr().Is4In6() {
		return errors.New("an IPv4 range must be written as one, such as 10.0.0.0/8")
	}
	if masked := prefix.Masked(); masked != prefix {
		return fmt.Errorf("bits are set beyond the prefix: the range is %s", masked)
	}
	p.prefixes = append(p.prefixes, prefix)
	return nil
}

// Allows reports whether addr may be dialled for host (a Target's Host: the
// name that resolved to addr, or the literal itself).
func (p TargetPolicy) Allows(addr netip.Addr, host string) bool {
	if !addr.IsValid() || addr.Zone() != "" {
		return false
	}
	addr = addr.Unmap()
	if publicAddr(addr) || p.contains(addr) {
		return true
	}
	// A listed name may point into the private networks, and nowhere else: link-local
	// addresses (a cloud's metadata service) stay shut.
	return p.Lists(host) && (addr.IsPrivate() || addr.IsLoopback())
}

// Lists reports whether the operator allowed host by its name.
func (p TargetPolicy) Lists(host string) bool {
	_, ok := p.names[host]
	return ok
}

func (p TargetPolicy) contains(addr netip.Addr) bool {
	for _, prefix := range p.prefixes {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// checkHost applies the rules that depend on what the operator allowed.
func (p TargetPolicy) checkHost(t Target) error {
	listed := p.Lists(t.Host)
	if t.Addr.IsValid() {
		if !p.Allows(t.Addr, t.Host) {
			return targetError(TargetAddress, "the address is not public and not allowed here")
		}
		listed = p.contains(t.Addr)
	} else if !listed && localName(t.Host) {
		return targetError(TargetName, "the name is a local one (a single label, or under localhost, local, internal or home.arpa) and not allowed here")
	}
	if t.Scheme == schemeHTTP && !listed {
		return targetError(TargetPlainHTTP, "plain http is accepted only for hosts allowed by the operator: use https")
	}
	return nil
}

func localName(name string) bool {
	if !strings.Contains(name, ".") {
		return true
	}
	for _, suffix := range []string{".localhost", ".local", ".internal", ".home.arpa"} {
		if strings.HasSuffix(name, suffix) || name == suffix[1:] {
			return true
		}
	}
	return false
}

// publicAddr reports whether addr, unmapped, is on the public Internet.
func publicAddr(addr netip.Addr) bool {
	if addr.Is4() {
		return !within(deniedIPv4, addr)
	}
	if nat64.Contains(addr) {
		// A NAT64 gateway (RFC 6052) connects to the IPv4 address in the last
		// four bytes, so that address decides.
		b := addr.As16()
		return publicAddr(netip.AddrFrom4([4]byte(b[12:])))
	}
	return globalUnicast.Contains(addr) && !within(deniedIPv6, addr)
}

func within(prefixes []netip.Prefix, addr netip.Addr) bool {
	for _, prefix := range prefixes {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

func mustPrefixes(texts ...string) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		prefixes[i] = netip.MustParsePrefix(text)
	}
	return prefixes
}

//nolint:gochecknoglobals // tables: IANA's special-purpose registries, and one cloud's address
var (
	deniedIPv4 = mustPrefixes(
		"0.0.0.0/8",        // this network (RFC 791)
		"10.0.0.0/8",       // private (RFC 1918)
		"100.64.0.0/10",    // carriers' NAT (RFC 6598); some clouds' metadata
		"127.0.0.0/8",      // loopback
		"169.254.0.0/16",   // link-local (RFC 3927); clouds' metadata
		"172.16.0.0/12",    // private
		"192.0.0.0/24",     // protocol assignments (RFC 6890)
		"192.0.2.0/24",     // documentation (RFC 5737)
		"192.88.99.0/24",   // 6to4 relays (RFC 7526)
		"192.168.0.0/16",   // private
		"198.18.0.0/15",    // benchmarks (RFC 2544)
		"198.51.100.0/24",  // documentation
		"203.0.113.0/24",   // documentation
		"224.0.0.0/4",      // multicast
		"240.0.0.0/4",      // reserved, and broadcast
		"168.63.129.16/32", // Azure's platform channel, on a public address
	)
	globalUnicast = netip.MustParsePrefix("2000::/3")
	nat64         = netip.MustParsePrefix("64:ff9b::/96")
	deniedIPv6    = mustPrefixes(
		"2001::/23",     // protocol assignments (RFC 2928), with Teredo
		"2001:db8::/32", // documentation (RFC 3849)
		"2002::/16",     // 6to4: holds an IPv4 address (RFC 3056)
		"3fff::/20",     // documentation (RFC 9637)
	)
)

// blockedPort reports the ports of the WHATWG Fetch standard ("port blocking"):
// other protocols' servers would take a POST for their own commands.
func blockedPort(port uint16) bool {
	switch port {
	case 0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95,
		101, 102, 103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389,
		427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989,
		990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666,
		6667, 6668, 6669, 6679, 6697, 10080:
		return true
	}
	return false
}
