package schemas

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	// MaxTargetBytes bounds a target's URL.
	MaxTargetBytes = 2048

	// RFC 1035, section 2.3.4; a name's 255 octets on the wire are 253 characters.
	maxNameLength  = 253
	maxLabelLength = 63

	schemeHTTP  = "http"
	schemeHTTPS = "https"
)

// TargetCode is the rule that a target breaks.
type TargetCode string

// The closed set of target codes.
const (
	TargetEmpty       TargetCode = "url_empty"
	TargetTooLong     TargetCode = "url_too_long"     // over MaxTargetBytes
	TargetCharacter   TargetCode = "url_character"    // a character that must be percent-encoded or may not be there
	TargetScheme      TargetCode = "url_scheme"       // neither https://… nor http://…
	TargetPlainHTTP   TargetCode = "url_plain_http"   // http where --allow-targets does not allow the host
	TargetUserinfo    TargetCode = "url_userinfo"     // user:password@
	TargetFragment    TargetCode = "url_fragment"     // #…, which HTTP never sends
	TargetPort        TargetCode = "url_port"         // not a number from 1 to 65535
	TargetPortBlocked TargetCode = "url_port_blocked" // another protocol's port (WHATWG Fetch)
	TargetHost        TargetCode = "url_host"         // neither a name nor an address in its canonical form
	TargetName        TargetCode = "url_name"         // a name that is local by its form
	TargetAddress     TargetCode = "url_address"      // an address that is not public
)

// TargetError says why a URL may not be a webhook's target.
type TargetError struct {
	Code TargetCode
	// Detail is the rule in words, without the URL (its query may hold a token).
	Detail string
}

// Error returns the rule in words.
func (e *TargetError) Error() string { return "target refused: " + e.Detail }

func targetError(code TargetCode, format string, args ...any) *TargetError {
	return &TargetError{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Target is a webhook's URL that passed every rule that its text can break.
// What a name resolves to is checked when it is dialled, with TargetPolicy.Allows.
type Target struct {
	// URL is the canonical form: scheme and host in lower case, the name as
	// punycode without its trailing dot, no default port; from the path on
	// byte for byte as it was given. ParseTarget(URL) gives the same target.
	URL    string
	Scheme string // "https" or "http"
	// Host is the name, or the address without brackets.
	Host string
	// Addr is the address where Host is a literal, else invalid.
	Addr netip.Addr
	Port uint16
	// Authority is the Host header: Host (an IPv6 address in brackets), and the port unless it is the scheme's default.
	Authority string
	// Path is what the request line asks for: path and query.
	Path string
}

// ParseTarget checks the text of a URL against every rule for targets
// (no DNS) and returns it in canonical form. Errors are *TargetError.
func (p TargetPolicy) ParseTarget(raw string) (Target, error) {
	scheme, rest, err := splitScheme(raw)
	if err != nil {
		return Target{}, err
	}
	authority, path := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	if err := checkPath(path); err != nil {
		return Target{}, err
	}
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	t := Target{Scheme: scheme, Path: path}
	if err := t.parseAuthority(authority); err != nil {
		return Target{}, err
	}
	if err := p.checkHost(t); err != nil {
		return Target{}, err
	}
	t.URL = t.Scheme + "://" + t.Authority + t.Path
	if len(t.URL) > MaxTargetBytes {
		return Target{}, targetError(TargetTooLong, "the URL is over %d bytes in its canonical form", MaxTargetBytes)
	}
	return t, nil
}

// splitScheme demands "scheme://" in full: parsers that mend a missing slash
// or scheme disagree about what the host is.
func splitScheme(raw string) (scheme, rest string, err error) {
	if raw == "" {
		return "", "", targetError(TargetEmpty, "the URL is empty")
	}
	if len(raw) > MaxTargetBytes {
		return "", "", targetError(TargetTooLong, "the URL is over %d bytes", MaxTargetBytes)
	}
	scheme, rest, found := strings.Cut(raw, "://")
	scheme = strings.ToLower(scheme)
	if !found || (scheme != schemeHTTP && scheme != schemeHTTPS) {
		return "", "", targetError(TargetScheme, "the URL must begin with https://")
	}
	return scheme, rest, nil
}

// checkPath lets visible ASCII through, for the path goes out byte for byte.
func checkPath(path string) error {
	for i := range len(path) {
		switch c := path[i]; {
		case c == '#':
			return targetError(TargetFragment, "the URL has a fragment (#), which is never sent")
		case c <= ' ' || c >= 0x7f || c == '\\':
			return targetError(TargetCharacter, "byte 0x%02x in path or query must be percent-encoded", c)
		}
	}
	return nil
}

func (t *Target) parseAuthority(authority string) error {
	if strings.Contains(authority, "@") {
		return targetError(TargetUserinfo, "the URL may not hold a user name or password")
	}
	host, port, err := splitPort(authority)
	if err != nil {
		return err
	}
	t.Port = 443
	if t.Scheme == schemeHTTP {
		t.Port = 80
	}
	suffix := ""
	if port != "" {
		n, err := parsePort(port)
		if err != nil {
			return err
		}
		if n != t.Port {
			t.Port, suffix = n, ":"+port
		}
	}
	t.Host, t.Addr, err = parseHost(host)
	if err != nil {
		return err
	}
	t.Authority = t.Host + suffix
	if t.Addr.Is6() {
		t.Authority = "[" + t.Host + "]" + suffix
	}
	return nil
}

// splitPort parts host and port; the host keeps its brackets, and port is
// empty where there is none.
func splitPort(authority string) (host, port string, err error) {
	host = authority
	after := ""
	if strings.HasPrefix(authority, "[") {
		end := strings.IndexByte(authority, ']')
		if end < 0 {
			return "", "", targetError(TargetHost, "the host has an opening bracket without a closing one")
		}
		host, after = authority[:end+1], authority[end+1:]
	} else if i := strings.IndexByte(authority, ':'); i >= 0 {
		host, after = authority[:i], authority[i:]
	}
	if host == "" {
		return "", "", targetError(TargetHost, "the URL has no host")
	}
	if after == "" {
		return host, "", nil
	}
	if after[0] != ':' {
		return "", "", targetError(TargetHost, "only a port may follow an address in brackets")
	}
	if after == ":" {
		return "", "", targetError(TargetPort, "the port is empty")
	}
	return host, after[1:], nil
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	// ParseUint takes no sign but does take leading zeros.
	if err != nil || n == 0 || text[0] == '0' {
		return 0, targetError(TargetPort, "the port must be a number from 1 to 65535, without leading zeros")
	}
	port := uint16(n)
	if blockedPort(port) {
		return 0, targetError(TargetPortBlocked, "port %d belongs to another protocol", port)
	}
	return port, nil
}

// parseHost returns a host in canonical form, and its address if it is a literal.
func parseHost(host string) (string, netip.Addr, error) {
	if inner, ok := strings.CutPrefix(host, "["); ok {
		return parseIPv6(strings.TrimSuffix(inner, "]"))
	}
	name, err := canonicalName(host)
	if err != nil {
		return "", netip.Addr{}, err
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	// Resolvers of the C library read 2130706433, 0x7f000001, 127.1 and 0177.0.0.1
	// as addresses: what ends like a number must be one, written in the one way.
	if !strings.HasPrefix(last, "0x") && strings.Trim(last, "0123456789") != "" {
		return name, netip.Addr{}, nil
	}
	addr, parseErr := netip.ParseAddr(name)
	if parseErr != nil || !addr.Is4() {
		return "", netip.Addr{}, targetError(TargetHost, "a host that ends in a number must be an IPv4 address of four decimal parts")
	}
	return name, addr, nil
}

func parseIPv6(text string) (string, netip.Addr, error) {
	if strings.Contains(text, "%") {
		return "", netip.Addr{}, targetError(TargetHost, "an address may not have a zone")
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || !addr.Is6() {
		return "", netip.Addr{}, targetError(TargetHost, "brackets must hold an IPv6 address")
	}
	addr = addr.Unmap()
	return addr.String(), addr, nil
}

// idnaNames maps names outside ASCII as browsers do (UTS #46, non-transitional) and
// refuses what the mapping would turn into other ASCII than a name's.
//
//nolint:gochecknoglobals // immutable; made anew it would cost more than the check itself
var idnaNames = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false), idna.CheckHyphens(false))

// canonicalName returns a host name in lower case, as punycode, without its
// trailing dot, or says which rule it breaks.
func canonicalName(host string) (string, error) {
	name, err := asciiName(host)
	if err != nil {
		return "", err
	}
	// One trailing dot is DNS's own way to end a name; SNI and Host have none.
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > maxNameLength {
		return "", targetError(TargetHost, "a host name has 1 to %d characters", maxNameLength)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabelLength {
			return "", targetError(TargetHost, "each part of a host name has 1 to %d characters", maxLabelLength)
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return "", targetError(TargetHost, "a part of a host name may not begin or end with a hyphen")
		}
		if !strings.HasPrefix(label, "xn--") {
			continue
		}
		if back, err := idnaNames.ToASCII(label); err != nil || back != label {
			return "", targetError(TargetHost, "the host name holds punycode that stands for no name")
		}
	}
	return name, nil
}

// asciiName lowers an ASCII name itself and leaves others to IDNA, which knows
// no underscore (legal in DNS, and in use).
func asciiName(host string) (string, error) {
	ascii := true
	for _, r := range host {
		switch {
		case r >= utf8.RuneSelf:
			if r == utf8.RuneError || ignorable(r) {
				return "", targetError(TargetCharacter, "the host name holds %U, which is invisible or not text", r)
			}
			ascii = false
		case !nameRune(r):
			return "", targetError(TargetCharacter, "the host name may not hold %q", r)
		}
	}
	if ascii {
		return strings.ToLower(host), nil
	}
	name, err := idnaNames.ToASCII(host)
	if err != nil {
		return "", targetError(TargetHost, "the host name is not a valid internationalized name")
	}
	for i := range len(name) {
		if !nameRune(rune(name[i])) {
			return "", targetError(TargetCharacter, "the host name holds a character that stands for %q", name[i])
		}
	}
	return name, nil
}

func nameRune(c rune) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.'
}

// ignorable reports the runes that are not shown: Unicode's
// Default_Ignorable_Code_Point and the few format characters beyond it.
// IDNA would map them away, so that two texts that look alike differ.
func ignorable(r rune) bool {
	return unicode.In(r, unicode.Cf, unicode.Cc, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}
