package filter

import (
	"fmt"
	"regexp"

	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

const (
	functionMatches = overloads.Matches
	// maxMatched bounds a text that a regular expression looks at. CEL counts a
	// call's cost when it is done, and 1 MiB takes as long as a hundred filters may.
	maxMatched = 16 << 10
	// bytesPerStep is how much text is compared for one unit of cost, as CEL has it.
	bytesPerStep = 10
)

// costs counts comparisons by all that they may have to look at. CEL itself goes by
// the number of members, however deep each may be.
type costs struct{}

// CallCost implements cost.ActualCostEstimator. nil leaves the cost to CEL.
func (costs) CallCost(function, _ string, args []ref.Val, _ ref.Val) *uint64 {
	var compared uint64
	switch {
	case len(args) != 2:
		return nil
	case function == operators.Equals, function == operators.NotEquals:
		compared = min(extent(args[0]), extent(args[1]))
	case function == operators.In:
		compared = extent(args[1])
	default:
		return nil
	}
	return new(1 + compared/bytesPerStep)
}

// extent is how many bytes, about, a value is long. It takes no longer to find than
// maxCost allows, and is as good as endless then.
func extent(v ref.Val) uint64 {
	left := uint64(maxCost * bytesPerStep)
	return measure(v, left)
}

func measure(v ref.Val, most uint64) uint64 {
	switch v := v.(type) {
	case object:
		return uint64(v.length) //nolint:gosec // a length
	case array:
		return uint64(v.length) //nolint:gosec // a length
	case types.String:
		return uint64(len(v))
	case types.Bytes:
		return uint64(len(v))
	case traits.Lister: // made by the expression
		return measureAll(v.Iterator(), most, func(element ref.Val) ref.Val { return element })
	case traits.Mapper:
		return measureAll(v.Iterator(), most, v.Get)
	default:
		return 1
	}
}

func measureAll(it traits.Iterator, most uint64, value func(ref.Val) ref.Val) uint64 {
	total := uint64(1)
	for it.HasNext() == types.True && total < most {
		total += 1 + measure(value(it.Next()), most-total)
	}
	return total
}

// regexps compiles each pattern with its filter, for functions that bound what they look at.
func regexps() []*interpreter.RegexOptimization {
	var all []*interpreter.RegexOptimization
	for _, overload := range []string{overloads.Matches, overloads.MatchesString} {
		all = append(all, &interpreter.RegexOptimization{
			Function: functionMatches, OverloadID: overload, RegexIndex: 1, Factory: compileRegexp,
		})
	}
	return all
}

func compileRegexp(call interpreter.InterpretableCall, pattern string) (interpreter.InterpretableCall, error) {
	compiled, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	return interpreter.NewCall(call.ID(), call.Function(), call.OverloadID(), call.Args(), func(args ...ref.Val) ref.Val {
		text, ok := args[0].(types.String)
		if !ok {
			return types.MaybeNoSuchOverloadErr(args[0])
		}
		if len(text) > maxMatched {
			return types.WrapErr(fmt.Errorf("matches looks at texts of at most %d bytes, and this one has %d", maxMatched, len(text)))
		}
		return types.Bool(compiled.MatchString(string(text)))
	}), nil
}
