// Package filter provides the expressions by which a webhook chooses among the
// events that match its patterns: CEL (Common Expression Language, cel.dev) over
// the variables event, organization, account, subject, time and payload.
//
// Router, API and command line decide by the same code. It runs no goroutines.
package filter

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"

	"github.com/postrider/postrider/schemas"
)

const (
	// maxCost bounds one decision, in CEL's units: about a field looked at, or ten
	// bytes compared. 10,000 are a millisecond or two, beside the parsing of the
	// payload, which all filters of an event share.
	maxCost = 10_000
	// maxErrors is how many mistakes of an expression are told.
	maxErrors = 5
)

// Filter is a compiled expression. It may be used by several goroutines.
type Filter struct {
	program cel.Program
}

// Compile reads an expression. The error is a *schemas.ValidationError with the
// code invalid_filter at #/filter; its detail says line and column of each mistake.
func Compile(expression string) (*Filter, error) {
	env, err := environment()
	if err != nil {
		return nil, err
	}
	checked, issues := env.Compile(expression)
	if issues.Err() != nil {
		return nil, invalid(mistakes(issues))
	}
	if out := checked.OutputType(); !out.IsExactType(cel.BoolType) && !out.IsExactType(cel.DynType) {
		return nil, invalid(fmt.Sprintf("a filter says true or false, and this is of the type %s", out))
	}
	program, err := env.Program(checked,
		cel.EvalOptions(cel.OptOptimize),
		cel.OptimizeRegex(regexps()...),
		cel.CostTracking(costs{}),
		cel.CostLimit(maxCost),
	)
	if err != nil { // a constant that cannot be computed
		return nil, invalid(err.Error())
	}
	return &Filter{program}, nil
}

// Match says whether an event passes. The error is an *Error: the expression came
// to no decision, and the event does not pass.
func (f *Filter) Match(e *Event) (bool, error) {
	out, _, err := f.program.Eval(e)
	if err != nil {
		kind := KindEvaluation
		if cancelled, ok := errors.AsType[interpreter.EvalCancelledError](err); ok && cancelled.Cause == interpreter.CostLimitExceeded {
			kind = KindCost
			err = fmt.Errorf("more than %d steps", maxCost)
		}
		return false, &Error{Kind: kind, err: err}
	}
	passes, ok := out.(types.Bool)
	if !ok {
		return false, &Error{Kind: KindEvaluation, err: fmt.Errorf("the expression came to a %s, not to true or false", out.Type().TypeName())}
	}
	return bool(passes), nil
}

// Kind is a closed set of reasons, for metrics.
type Kind string

// The kinds.
const (
	KindInvalid    Kind = "invalid"    // the expression cannot be compiled
	KindCost       Kind = "cost"       // it would cost too much on this event
	KindEvaluation Kind = "evaluation" // it needs what the event does not have, or has of another type
)

// Error is why a filter came to no decision. Its text may hold what stands in the
// payload: it is for who sent it, and for no log.
type Error struct {
	Kind Kind
	err  error
}

// Error says so in words.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.err }

// environment returns what expressions are compiled in: the standard library of
// CEL, whose functions all have a known cost, and nothing that tells the time or
// reads anything but the event.
//
//nolint:gochecknoglobals // built once: it takes a while, and is never changed
var environment = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable(varEvent, cel.StringType),
		cel.Variable(varOrganization, cel.StringType),
		cel.Variable(varAccount, cel.StringType),
		cel.Variable(varSubject, cel.StringType),
		cel.Variable(varTime, cel.TimestampType),
		cel.Variable(varPayload, cel.DynType),
		cel.CustomTypeAdapter(adapter{}),
		cel.CrossTypeNumericComparisons(true), // JSON's numbers are doubles, and people write 7
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(schemas.MaxFilterLength),
		cel.ASTValidators(literalPatterns{}),
	)
})

func invalid(detail string) error {
	return schemas.Invalid(schemas.CodeInvalidFilter, "#/filter", detail)
}

// mistakes tells what a compiler found, each with its place; lines and columns are counted from 1.
func mistakes(issues *cel.Issues) string {
	found := issues.Errors()
	var told []string
	for _, e := range found[:min(len(found), maxErrors)] {
		place := ""
		if line := e.Location.Line(); line > 0 { // else it is about all of it
			place = fmt.Sprintf("line %d, column %d: ", line, max(e.Location.Column(), 0)+1)
		}
		told = append(told, place+e.Message)
	}
	return strings.Join(told, "; ")
}

// literalPatterns refuses regular expressions that are not written out: one of the
// payload's would be compiled for each event, at a cost that nothing bounds.
type literalPatterns struct{}

// Name implements cel.ASTValidator.
func (literalPatterns) Name() string { return "postrider.literal_patterns" }

// Validate implements cel.ASTValidator.
func (literalPatterns) Validate(_ *cel.Env, _ cel.ValidatorConfig, a *ast.AST, issues *cel.Issues) {
	for _, e := range ast.MatchDescendants(ast.NavigateAST(a), ast.FunctionMatcher(functionMatches)) {
		args := e.AsCall().Args()
		pattern := args[len(args)-1]
		if pattern.Kind() != ast.LiteralKind {
			issues.ReportErrorAtID(pattern.ID(), "the pattern of matches must be written out")
		}
	}
}
