package process

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"
)

const envPrefix = "POSTRIDER_"

// Settings are a program's settings, read from flags, environment variables (POSTRIDER_ and the flag's name in capitals with _ for -) and a YAML file
// (the flag's name with _ for -); a flag goes before the environment, the environment before the file. Registering a setting puts its default into
// the variable at once, so a Config that has been registered holds its defaults without being parsed.
//
// A name registered again is the same setting: every variable gets its value, and the first registration's default and usage stand.
// Settings are for one goroutine.
type Settings struct {
	program  string
	settings []*setting
	checks   []func() error
	config   string
	args     *[]string // where positional arguments go; nil refuses them
	argUsage string
	problems []string
}

type setting struct {
	name, usage, unit, allowed string
	def                        string
	list, boolean, secret      bool
	assign                     []func(text string) error
	empty                      func() bool
	text                       string // the value in force, as it was given
	source                     string // where it was given; empty while it is the default
}

// NewSettings returns the settings of a program: at first just --config.
func NewSettings(program string) *Settings {
	s := &Settings{program: program}
	s.String(&s.config, "config", "", "YAML file with settings, each under its flag's name with _ for -")
	return s
}

// String registers a text.
func (s *Settings) String(p *string, name, def, usage string) {
	register(s, p, name, def, usage, textKind())
}

// Secret registers a text that is masked wherever settings are shown. @FILE reads it from a file, without the line end.
func (s *Settings) Secret(p *string, name, def, usage string) {
	register(s, p, name, def, usage, secretKind())
}

// Address registers a host:port to listen on.
func (s *Settings) Address(p *string, name, def, usage string) {
	register(s, p, name, def, usage, addressKind())
}

// Strings registers a list of texts, separated by commas (in the file: a list, or one text with commas).
func (s *Settings) Strings(p *[]string, name string, def []string, usage string) {
	register(s, p, name, def, usage, textsKind())
}

// Int registers a whole number; Between bounds it.
func (s *Settings) Int(p *int, name string, def int, usage string) {
	register(s, p, name, def, usage, intKind())
}

// Bool registers a switch: --name, --name=false.
func (s *Settings) Bool(p *bool, name string, def bool, usage string) {
	register(s, p, name, def, usage, boolKind())
}

// Duration registers a duration of zero or more, written with its unit (500ms, 15s, 24h).
func (s *Settings) Duration(p *time.Duration, name string, def time.Duration, usage string) {
	register(s, p, name, def, usage, durationKind())
}

// Durations registers a list of durations, separated by commas.
func (s *Settings) Durations(p *[]time.Duration, name string, def []time.Duration, usage string) {
	register(s, p, name, def, usage, durationsKind())
}

// Bytes registers a size, written as a number of B, KiB, MiB, GiB or TiB; def is written so too ("256MiB").
func (s *Settings) Bytes(p *int64, name, def, usage string) {
	value, err := parseBytes(def)
	if err != nil {
		panic(fmt.Sprintf("BUG: default of --%s: %v", name, err))
	}
	register(s, p, name, value, usage, bytesKind())
}

// Arguments lets the program take arguments besides flags; without it they are a problem.
func (s *Settings) Arguments(p *[]string, usage string) {
	s.args, s.argUsage = p, usage
}

// Check adds a rule, looked at when everything has been read, whether or not there are other problems (a setting that could not be read has its default).
// The rule's error is a problem of its own, errors joined with errors.Join one each; Invalid makes it.
func (s *Settings) Check(rule func() error) {
	s.checks = append(s.checks, rule)
}

// CheckText adds the rule that a text can be parsed, whose error says what is allowed. An empty text is Required's to refuse.
func (s *Settings) CheckText(p *string, name string, parse func(text string) error) {
	s.Check(func() error {
		if *p == "" {
			return nil
		}
		if err := parse(*p); err != nil {
			return s.Invalid(name, err.Error())
		}
		return nil
	})
}

// Invalid is what a rule of Check returns: it names the setting, its value and source, and what is allowed ("must be " + allowed).
func (s *Settings) Invalid(name, allowed string) error {
	found := s.find(name)
	if found == nil {
		panic(fmt.Sprintf("BUG: no setting --%s", name))
	}
	return invalidError(found.problem(found.text, found.source, allowed))
}

// Required makes it a problem that a setting is empty.
func (s *Settings) Required(names ...string) {
	for _, name := range names {
		s.Check(func() error {
			if x := s.find(name); x != nil && !x.empty() {
				return nil
			}
			return s.Invalid(name, "set")
		})
	}
}

// OneOf makes it a problem that a text is none of the allowed ones.
func (s *Settings) OneOf(p *string, name string, allowed ...string) {
	s.Check(func() error {
		if slices.Contains(allowed, *p) {
			return nil
		}
		return s.Invalid(name, "one of "+strings.Join(allowed, ", "))
	})
}

// Between makes it a problem that a number, a duration or a size (p is the variable it was registered with) is under low or over high.
func Between[T int | int64 | time.Duration](s *Settings, p *T, name string, low, high T) {
	show := func(value T) string {
		switch value := any(value).(type) {
		case time.Duration:
			return formatDuration(value)
		case int64:
			return formatBytes(value)
		default:
			return fmt.Sprint(value)
		}
	}
	s.Check(func() error {
		if *p >= low && *p <= high {
			return nil
		}
		return s.Invalid(name, "from "+show(low)+" to "+show(high))
	})
}

// WriteHelp writes every setting with its unit, default and environment variable.
func (s *Settings) WriteHelp(w io.Writer) error {
	var help strings.Builder
	fmt.Fprintf(&help, "Usage: %s\n\n", strings.TrimSpace(s.program+" [settings] "+s.argUsage))
	help.WriteString("Each setting is a flag, an environment variable, or a key of the YAML file that --config names\n" +
		"(the flag's name with _ for -); flags go before the environment, the environment before the file.\n\n")
	for _, x := range slices.SortedFunc(slices.Values(s.settings), func(a, b *setting) int { return cmp.Compare(a.name, b.name) }) {
		def := "none"
		if x.def != "" {
			def = x.mask(x.def)
		}
		fmt.Fprintf(&help, "  --%s %s\n        %s\n        default %s; %s\n", x.name, x.unit, x.usage, def, x.env())
	}
	if _, err := io.WriteString(w, help.String()); err != nil {
		return fmt.Errorf("writing help of %q: %w", s.program, err)
	}
	return nil
}

// LogValue shows the settings that were given, secrets masked.
func (s *Settings) LogValue() slog.Value {
	var given []slog.Attr
	for _, x := range s.settings {
		if x.source != "" {
			given = append(given, slog.String(strings.ReplaceAll(x.name, "-", "_"), x.mask(x.text)))
		}
	}
	return slog.GroupValue(given...)
}

func (s *Settings) find(name string) *setting {
	for _, x := range s.settings {
		if x.name == name {
			return x
		}
	}
	return nil
}

func register[T any](s *Settings, p *T, name string, def T, usage string, k kind[T]) {
	assign := func(text string) error {
		value, err := k.parse(text)
		if err != nil {
			return err
		}
		*p = value
		return nil
	}
	if x := s.find(name); x != nil {
		if x.unit != k.unit {
			panic(fmt.Sprintf("BUG: --%s registered as %s and as %s", name, x.unit, k.unit))
		}
		x.assign = append(x.assign, assign)
		if err := assign(x.def); err != nil {
			panic(fmt.Sprintf("BUG: default of --%s: %v", name, err))
		}
		return
	}
	*p = def
	s.settings = append(s.settings, &setting{
		name: name, usage: usage, unit: k.unit, allowed: k.allowed, def: k.format(def), text: k.format(def),
		list: k.list, boolean: k.boolean, secret: k.secret, assign: []func(string) error{assign},
		empty: func() bool { return k.format(*p) == "" },
	})
}

func (x *setting) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(x.name, "-", "_"))
}

func (x *setting) mask(text string) string {
	if x.secret && text != "" {
		return "********"
	}
	return text
}

// set gives the setting a value, or says what is wrong with it.
func (x *setting) set(text, source string) (problem string) {
	for _, assign := range x.assign {
		if err := assign(text); err != nil {
			return x.problem(text, source, x.allowed)
		}
	}
	x.text, x.source = text, source
	return ""
}

func (x *setting) problem(text, source, allowed string) string {
	if source == "" {
		source = "default"
	}
	return fmt.Sprintf("--%s = %q (%s): must be %s", x.name, x.mask(text), source, allowed)
}
