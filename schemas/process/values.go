package process

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Kinds of values. Each says how a value is written (unit, for -h), what is allowed (for problems), how a text is read and how a default is shown.
type kind[T any] struct {
	unit    string
	allowed string
	list    bool
	boolean bool
	secret  bool
	parse   func(text string) (T, error)
	format  func(value T) string
}

var (
	errNegative = errors.New("below zero")
	errSize     = errors.New("no size")
	errPort     = errors.New("no port")
)

func textKind() kind[string] {
	return kind[string]{
		unit: "text", allowed: "text",
		parse:  func(text string) (string, error) { return text, nil },
		format: func(value string) string { return value },
	}
}

func secretKind() kind[string] {
	return kind[string]{
		unit: "secret", allowed: "text, or @FILE with a file that can be read", secret: true,
		parse:  readSecret,
		format: func(value string) string { return value },
	}
}

func addressKind() kind[string] {
	return kind[string]{
		unit: "host:port", allowed: "host:port with a port from 0 to 65535, such as 127.0.0.1:8080 (an empty host means every interface, port 0 any free port)",
		parse: func(text string) (string, error) {
			_, port, err := net.SplitHostPort(text)
			if err != nil {
				return "", fmt.Errorf("splitting address %q: %w", text, err)
			}
			if _, err := strconv.ParseUint(port, 10, 16); err != nil {
				return "", fmt.Errorf("reading port %q: %w", port, errPort)
			}
			return text, nil
		},
		format: func(value string) string { return value },
	}
}

func textsKind() kind[[]string] {
	return kind[[]string]{
		unit: "text,text…", allowed: "texts separated by commas", list: true,
		parse:  func(text string) ([]string, error) { return splitList(text), nil },
		format: func(value []string) string { return strings.Join(value, ",") },
	}
}

func intKind() kind[int] {
	return kind[int]{
		unit: "number", allowed: "a whole number",
		parse:  strconv.Atoi,
		format: strconv.Itoa,
	}
}

func boolKind() kind[bool] {
	return kind[bool]{
		unit: "true|false", allowed: "true or false", boolean: true,
		parse:  strconv.ParseBool,
		format: strconv.FormatBool,
	}
}

func durationKind() kind[time.Duration] {
	return kind[time.Duration]{
		unit: "duration", allowed: "a duration of zero or more with its unit, such as 500ms, 15s or 24h",
		parse:  parseDuration,
		format: formatDuration,
	}
}

func durationsKind() kind[[]time.Duration] {
	return kind[[]time.Duration]{
		unit: "duration,duration…", allowed: "durations of zero or more with their units, separated by commas, such as 5s,5m,2h", list: true,
		parse: func(text string) ([]time.Duration, error) {
			var values []time.Duration
			for _, item := range splitList(text) {
				value, err := parseDuration(item)
				if err != nil {
					return nil, err
				}
				values = append(values, value)
			}
			return values, nil
		},
		format: func(values []time.Duration) string {
			texts := make([]string, 0, len(values))
			for _, value := range values {
				texts = append(texts, formatDuration(value))
			}
			return strings.Join(texts, ",")
		},
	}
}

func bytesKind() kind[int64] {
	return kind[int64]{
		unit: "bytes", allowed: "a whole number of bytes, KiB, MiB, GiB or TiB, such as 64KiB or 256MiB",
		parse:  parseBytes,
		format: formatBytes,
	}
}

// readSecret keeps secrets out of `ps` and of unit files: @FILE names the file that holds it.
// The error never holds the text: it may be a secret that happens to begin with @.
func readSecret(text string) (string, error) {
	path, named := strings.CutPrefix(text, "@")
	if !named {
		return text, nil
	}
	content, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return "", errors.New("reading the file it names") // not the cause: it holds the path
	}
	return strings.TrimRight(string(content), "\r\n"), nil
}

// splitList splits at commas; spaces around an item and empty items do not count.
func splitList(text string) []string {
	var items []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func parseDuration(text string) (time.Duration, error) {
	value, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("reading duration %q: %w", text, err)
	}
	if value < 0 {
		return 0, fmt.Errorf("reading duration %q: %w", text, errNegative)
	}
	return value, nil
}

// formatDuration writes 24h instead of 24h0m0s.
func formatDuration(value time.Duration) string {
	text := value.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

type byteUnit struct {
	name string
	size int64
}

// byteUnits is in falling order: formatBytes takes the first that fits, and parseBytes must see KiB before B.
func byteUnits() []byteUnit {
	return []byteUnit{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}
}

func parseBytes(text string) (int64, error) {
	number, factor := text, int64(1)
	for _, unit := range byteUnits() {
		if before, found := strings.CutSuffix(text, unit.name); found {
			number, factor = strings.TrimSpace(before), unit.size
			break
		}
	}
	value, err := strconv.ParseInt(number, 10, 64)
	if err != nil || value < 0 || value > math.MaxInt64/factor {
		return 0, fmt.Errorf("reading size %q: %w", text, errSize)
	}
	return value * factor, nil
}

func formatBytes(value int64) string {
	for _, unit := range byteUnits() {
		if value >= unit.size && value%unit.size == 0 {
			return strconv.FormatInt(value/unit.size, 10) + unit.name
		}
	}
	return strconv.FormatInt(value, 10)
}
