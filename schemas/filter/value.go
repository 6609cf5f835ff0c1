package filter

import (
	"bytes"
	"math"
	"strconv"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"github.com/go-json-experiment/json/jsontext"
)

// A member is a value within a payload, which is parsed when an expression looks
// at it, and then one level deep: most look at two or three of hundreds.
type member struct {
	raw   jsontext.Value
	value ref.Val
}

// object and array know how long they are as text, which is what looking at all of one costs.
type (
	object struct {
		traits.Mapper

		length int
	}
	array struct {
		traits.Lister

		length int
	}
)

// adapter makes CEL's values of what they hold.
type adapter struct{}

// NativeToValue implements types.Adapter.
func (adapter) NativeToValue(value any) ref.Val {
	if m, ok := value.(*member); ok {
		if m.value == nil {
			m.value = parsed(m.raw)
		}
		return m.value
	}
	return types.DefaultTypeAdapter.NativeToValue(value)
}

// parsed returns the value of JSON that is known to be sound. Nothing is an empty object.
func parsed(raw jsontext.Value) ref.Val {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		raw = jsontext.Value("{}")
	}
	switch raw.Kind() {
	case '{':
		return object{types.NewStringInterfaceMap(adapter{}, members(raw)), len(raw)}
	case '[':
		return array{types.NewDynamicList(adapter{}, elements(raw)), len(raw)}
	case '"':
		text, err := jsontext.AppendUnquote(nil, raw)
		if err != nil && len(text) == 0 { // half a surrogate pair is replaced, and reported
			return types.WrapErr(err)
		}
		return types.String(text)
	case 't', 'f':
		return types.Bool(raw.Kind() == 't')
	case '0':
		return number(string(raw))
	default:
		return types.NullValue
	}
}

// number is a double, as CEL has it of JSON, but where a double would not be
// exactly what was written: whole numbers beyond 2^53, such as ids.
func number(text string) ref.Val {
	const exact = 1 << 53
	value, err := strconv.ParseFloat(text, 64)
	if math.Abs(value) >= exact {
		if whole, err := strconv.ParseInt(text, 10, 64); err == nil {
			return types.Int(whole)
		}
		if whole, err := strconv.ParseUint(text, 10, 64); err == nil {
			return types.Uint(whole)
		}
	}
	if err != nil { // beyond what a double can hold
		return types.WrapErr(err)
	}
	return types.Double(value)
}

// members parts an object. Of a name given twice the last counts, as for most who read JSON.
func members(raw jsontext.Value) map[string]any {
	found := make(map[string]any)
	dec := decoder(raw)
	for dec.PeekKind() == '"' {
		name, err := dec.ReadToken()
		if err != nil {
			break
		}
		key := name.String()
		value, err := dec.ReadValue()
		if err != nil {
			break
		}
		found[key] = within(raw, dec, value)
	}
	return found
}

func elements(raw jsontext.Value) []*member {
	var found []*member
	dec := decoder(raw)
	for kind := dec.PeekKind(); kind != ']' && kind != 0; kind = dec.PeekKind() {
		value, err := dec.ReadValue()
		if err != nil {
			break
		}
		found = append(found, within(raw, dec, value))
	}
	return found
}

// within is the value that dec has just read, as it stands in raw: dec's own is good until it reads on.
func within(raw jsontext.Value, dec *jsontext.Decoder, value jsontext.Value) *member {
	end := dec.InputOffset()
	return &member{raw: raw[end-int64(len(value)) : end : end]}
}

// decoder returns one that has read the first bracket.
func decoder(raw jsontext.Value) *jsontext.Decoder {
	dec := jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	_, _ = dec.ReadToken() // there is one: its kind was looked at
	return dec
}
