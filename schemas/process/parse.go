package process

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// SettingsError holds every problem of the settings: exit code 2.
type SettingsError struct {
	Problems []string
}

// Error tells all problems, one a line.
func (e *SettingsError) Error() string {
	return "bad settings:\n  " + strings.Join(e.Problems, "\n  ")
}

// invalidError is one problem, as Invalid words it.
type invalidError string

func (e invalidError) Error() string { return string(e) }

// Parse reads the file, the environment (as os.Environ gives it) and the flags, and looks at the rules of Check. It returns a *SettingsError with all problems,
// or flag.ErrHelp where -h or -help is among the flags. An environment variable that is empty, or that no setting has, does not count: one environment
// serves several programs, and Kubernetes adds variables of its own.
func (s *Settings) Parse(args, environ []string) error {
	s.problems = nil
	flags, err := s.readFlags(args)
	if err != nil {
		return err
	}
	variables := s.readEnvironment(environ)

	config := s.find("config")
	s.apply(config, variables, flags)
	if s.config != "" {
		s.readFile(s.config, config)
	}
	for _, x := range s.settings {
		if x != config {
			s.apply(x, variables, flags)
		}
	}
	for _, check := range s.checks {
		s.addProblems(check())
	}
	if len(s.problems) > 0 {
		return &SettingsError{Problems: s.problems}
	}
	return nil
}

func (s *Settings) apply(x *setting, variables, flags map[*setting]string) {
	if text, given := variables[x]; given {
		s.addProblem(x.set(text, x.env()))
	}
	if text, given := flags[x]; given {
		s.addProblem(x.set(text, "flag"))
	}
}

func (s *Settings) addProblem(problem string) {
	if problem != "" {
		s.problems = append(s.problems, problem)
	}
}

func (s *Settings) addProblems(err error) {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
	case errors.As(err, &joined):
		for _, err := range joined.Unwrap() {
			s.addProblems(err)
		}
	default:
		s.addProblem(err.Error())
	}
}

func (s *Settings) readEnvironment(environ []string) map[*setting]string {
	byName := make(map[string]*setting, len(s.settings))
	for _, x := range s.settings {
		byName[x.env()] = x
	}
	given := make(map[*setting]string)
	for _, variable := range environ {
		name, text, _ := strings.Cut(variable, "=")
		if x := byName[name]; x != nil && text != "" {
			given[x] = text
		}
	}
	return given
}

// recorder takes a flag's text as it comes. It never refuses one: package flag would stop at the first problem.
type recorder struct {
	setting *setting
	given   map[*setting]string
}

func (r recorder) String() string   { return "" }
func (r recorder) IsBoolFlag() bool { return r.setting.boolean }
func (r recorder) Set(text string) error {
	r.given[r.setting] = text
	return nil
}

// readFlags returns what the flags say, and goes on behind what it cannot read.
func (s *Settings) readFlags(args []string) (map[*setting]string, error) {
	given := make(map[*setting]string)
	flags := flag.NewFlagSet(s.program, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	for _, x := range s.settings {
		flags.Var(recorder{x, given}, x.name, x.usage)
	}
	var positional []string
	for {
		err := flags.Parse(args)
		rest := flags.Args()
		last := "" // the last argument read: what err is about, or the -- that ends the flags
		if read := len(args) - len(rest); read > 0 {
			last = args[read-1]
		}
		switch {
		case errors.Is(err, flag.ErrHelp):
			return nil, flag.ErrHelp
		case err != nil:
			args = s.skipFlag(last, rest)
		case len(rest) == 0 || last == "--":
			s.takeArguments(append(positional, rest...))
			return given, nil
		default:
			positional = append(positional, rest[0])
			args = rest[1:]
		}
	}
}

// skipFlag tells what is wrong with a flag, and returns the arguments behind it and its value.
// The value itself is not told: it may be the secret of a misspelt flag.
func (s *Settings) skipFlag(text string, rest []string) []string {
	name, _, hasValue := strings.Cut(strings.TrimLeft(text, "-"), "=")
	if x := s.find(name); x != nil {
		s.addProblem(fmt.Sprintf("--%s has no value: must be %s", name, x.allowed))
		return rest
	}
	s.addProblem(fmt.Sprintf("--%s: must be a setting that -h shows", name))
	if !hasValue && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return rest[1:]
	}
	return rest
}

func (s *Settings) takeArguments(positional []string) {
	if s.args != nil {
		*s.args = positional
		return
	}
	for _, text := range positional {
		s.addProblem(fmt.Sprintf("argument %q: must be a flag that -h shows, with its value", text))
	}
}

// readFile sets what the YAML file says.
func (s *Settings) readFile(path string, config *setting) {
	content, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		s.addProblem(config.problem(path, config.source, fmt.Sprintf("a file that can be read: %v", err)))
		return
	}
	// Keys that stand twice are told below, along with everything else.
	file, err := parser.ParseBytes(content, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		s.addProblem(config.problem(path, config.source, "a YAML file: "+syntaxProblem(err)))
		return
	}
	pairs, ok := mapping(file)
	if !ok {
		s.addProblem(config.problem(path, config.source, "a YAML file with one mapping of settings to values"))
		return
	}
	seen := make(map[string]bool, len(pairs))
	for _, pair := range pairs {
		place := fmt.Sprintf("%s:%d", path, pair.Key.GetToken().Position.Line)
		key := pair.Key.GetToken().Value
		x := s.find(strings.ReplaceAll(key, "_", "-"))
		switch {
		case x == nil || x == config || strings.Contains(key, "-"):
			s.addProblem(fmt.Sprintf("key %q (%s): must be the name of a flag that -h shows, other than config, with _ for -", key, place))
		case seen[key]:
			s.addProblem(fmt.Sprintf("key %q (%s): must stand only once", key, place))
		default:
			s.setNode(x, pair.Value, place)
		}
		seen[key] = true
	}
}

func (s *Settings) setNode(x *setting, node ast.Node, place string) {
	if node.Type() == ast.NullType {
		return // a key whose values are commented out
	}
	if text, ok := scalar(node); ok {
		s.addProblem(x.set(text, place))
		return
	}
	sequence, ok := node.(*ast.SequenceNode)
	if !ok || !x.list {
		s.addProblem(fmt.Sprintf("--%s = a %s (%s): must be %s", x.name, strings.ToLower(node.Type().YAMLName()), place, x.allowed))
		return
	}
	items := make([]string, 0, len(sequence.Values))
	for _, value := range sequence.Values {
		item, ok := scalar(value)
		if !ok {
			s.addProblem(fmt.Sprintf("--%s = a list with a %s (%s): must be %s", x.name, strings.ToLower(value.Type().YAMLName()), place, x.allowed))
			return
		}
		items = append(items, item)
	}
	s.addProblem(x.set(strings.Join(items, ","), place))
}

// mapping returns the pairs of the file's one document; an empty file has none.
func mapping(file *ast.File) ([]*ast.MappingValueNode, bool) {
	var pairs []*ast.MappingValueNode
	documents := 0
	for _, document := range file.Docs {
		switch body := document.Body.(type) {
		case nil, *ast.NullNode, *ast.CommentGroupNode:
			continue
		case *ast.MappingNode:
			pairs = body.Values
		case *ast.MappingValueNode:
			pairs = []*ast.MappingValueNode{body}
		default:
			return nil, false
		}
		documents++
	}
	return pairs, documents <= 1
}

// scalar returns a plain value as it is written: an admin key of digits must not be taken for a number and written again.
func scalar(node ast.Node) (string, bool) {
	switch node := node.(type) {
	case *ast.StringNode:
		return node.Value, true
	case *ast.LiteralNode:
		return strings.TrimSuffix(node.Value.Value, "\n"), true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return node.GetToken().Value, true
	default:
		return "", false
	}
}

// syntaxProblem leaves out the lines around the problem that the library would show: they may hold secrets.
func syntaxProblem(err error) string {
	var syntax interface {
		error
		GetMessage() string
		GetToken() *token.Token
	}
	if !errors.As(err, &syntax) || syntax.GetToken() == nil {
		return "it cannot be parsed"
	}
	position := syntax.GetToken().Position
	return fmt.Sprintf("line %d, column %d: %s", position.Line, position.Column, syntax.GetMessage())
}
