package schemas

import (
	"strings"
)

// Names with a meaning of their own.
const (
	// PingName is the test event's name.
	PingName = "ping"
	// AnyPattern matches every event but ping and the operational ones.
	AnyPattern = "*"

	maxNameBytes = 200
)

// SplitName parts an event's name at its last dot into service and method.
// A name without a dot is a service without a method.
func SplitName(name string) (service, method string) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return name, ""
	}
	return name[:i], name[i+1:]
}

// OperationalName reports whether name belongs to the services that only
// Postrider itself speaks for: webhook and delivery.
func OperationalName(name string) bool {
	service, _ := SplitName(name)
	return service == "webhook" || service == "delivery"
}

// PatternsFor returns the patterns that match an event of this name: an index
// by pattern is asked for each of them, and for nothing else.
//
//   - the name itself,
//   - its service alone, which stands for every method of exactly that service,
//   - "*.method", one method of any service,
//   - "*".
//
// Ping and operational events reach only webhooks that name them.
func PatternsFor(name string) []string {
	patterns := append(make([]string, 0, 4), name)
	service, method := SplitName(name)
	if method != "" {
		patterns = append(patterns, service)
	}
	if name == PingName || OperationalName(name) {
		return patterns
	}
	if method != "" {
		patterns = append(patterns, "*."+method)
	}
	return append(patterns, AnyPattern)
}

// ValidName reports whether name can be an event's: 1 to 200 bytes of
// [A-Za-z0-9._-], with a service, and a method if there is a dot.
func ValidName(name string) bool {
	if name == "" || len(name) > maxNameBytes {
		return false
	}
	for i := range len(name) {
		c := name[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
		if !ok {
			return false
		}
	}
	return name[0] != '.' && name[len(name)-1] != '.'
}

// ValidPattern reports whether pattern is one of the four kinds that
// PatternsFor can return: "*", "*.method", a service, a full name.
func ValidPattern(pattern string) bool {
	if pattern == AnyPattern {
		return true
	}
	if method, ok := strings.CutPrefix(pattern, "*."); ok {
		return ValidName(method) && !strings.Contains(method, ".")
	}
	return ValidName(pattern)
}
