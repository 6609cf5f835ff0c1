package schemas

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// MaxDepth is how deep arrays and objects may nest in anything Postrider reads.
const MaxDepth = 128

// A payload passes as it was sent: duplicate names and escapes of lone
// surrogates in it are its owner's business. Envelopes are held to more by their walker.
func lenient() jsontext.Options {
	return json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

// checkJSON reports whether data is one JSON value in UTF-8 of a bearable depth.
func checkJSON(data []byte, pointer string) *FieldError {
	if !utf8.Valid(data) {
		return &FieldError{CodeInvalidJSON, pointer, "not UTF-8"}
	}
	if tooDeep(data) {
		return &FieldError{CodeTooDeep, pointer, fmt.Sprintf("nested deeper than %d levels", MaxDepth)}
	}
	if jsontext.Value(data).IsValid(lenient()) {
		return nil
	}
	return &FieldError{CodeInvalidJSON, pointer, syntaxDetail(data)}
}

// tooDeep counts brackets outside strings; whether they match is the parser's to say.
func tooDeep(data []byte) bool {
	depth, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString:
			switch c {
			case '\\':
				i++
			case '"':
				inString = false
			}
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			if depth++; depth > MaxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// syntaxDetail says at which byte data stops being JSON, without quoting it.
func syntaxDetail(data []byte) string {
	if len(bytes.TrimSpace(data)) == 0 {
		return "empty where JSON is expected"
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(data), lenient())
	err := dec.SkipValue()
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return fmt.Sprintf("not JSON at byte %d", syntax.ByteOffset)
	}
	if err == nil {
		return fmt.Sprintf("more than one JSON value: the first ends at byte %d", dec.InputOffset())
	}
	return "not JSON: it ends too early"
}

// walkObject calls member for each member of the JSON object data, its value
// byte for byte as it stands there (aliasing data). It collects what member
// refuses; a repeated name is refused here. data must have passed checkJSON.
func walkObject(data []byte, pointer string, member func(name string, raw []byte) *FieldError) []FieldError {
	if kindOf(data) != '{' {
		return []FieldError{{CodeWrongType, pointer, "expected an object, got " + kindName(data)}}
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(data), lenient())
	if _, err := dec.ReadToken(); err != nil {
		return []FieldError{{CodeInvalidJSON, pointer, syntaxDetail(data)}}
	}
	var (
		fields []FieldError
		seen   = make(map[string]struct{}, 8)
	)
	for dec.PeekKind() == '"' {
		token, err := dec.ReadToken()
		if err != nil {
			return append(fields, FieldError{CodeInvalidJSON, pointer, syntaxDetail(data)})
		}
		name := token.String()
		raw, err := dec.ReadValue()
		if err != nil {
			return append(fields, FieldError{CodeInvalidJSON, pointer, syntaxDetail(data)})
		}
		end := dec.InputOffset()
		raw = data[end-int64(len(raw)) : end : end]
		if _, twice := seen[name]; twice {
			fields = append(fields, FieldError{CodeDuplicateField, pointerTo(pointer, name), "given twice"})
			continue
		}
		seen[name] = struct{}{}
		if f := member(name, raw); f != nil {
			fields = append(fields, *f)
		}
	}
	return fields
}

// SplitArray parts a JSON array into its items, byte for byte as they stand
// there (aliasing data). It refuses what is no array and more than limit items.
func SplitArray(data []byte, limit int) ([][]byte, error) {
	if f := checkJSON(data, "#"); f != nil {
		return nil, &ValidationError{Fields: []FieldError{*f}}
	}
	if kindOf(data) != '[' {
		return nil, Invalid(CodeWrongType, "#", "expected an array, got "+kindName(data))
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(data), lenient())
	if _, err := dec.ReadToken(); err != nil {
		return nil, Invalid(CodeInvalidJSON, "#", syntaxDetail(data))
	}
	var items [][]byte
	for dec.PeekKind() != ']' {
		raw, err := dec.ReadValue()
		if err != nil {
			return nil, Invalid(CodeInvalidJSON, "#", syntaxDetail(data))
		}
		if len(items) == limit {
			return nil, Invalid(CodeTooLarge, "#", fmt.Sprintf("more than %d items", limit))
		}
		end := dec.InputOffset()
		items = append(items, data[end-int64(len(raw)):end:end])
	}
	return items, nil
}

// IsArray reports whether the JSON in data begins an array: a batch of events.
func IsArray(data []byte) bool { return kindOf(data) == '[' }

// kindOf returns the first byte of a JSON value, 0 if there is none.
func kindOf(data []byte) byte {
	data = bytes.TrimLeft(data, " \t\r\n")
	if len(data) == 0 {
		return 0
	}
	return data[0]
}

func kindName(data []byte) string {
	switch kindOf(data) {
	case 0:
		return "nothing"
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

// stringValue reads a JSON string that is exact in UTF-8.
func stringValue(raw []byte, pointer string) (string, *FieldError) {
	if kindOf(raw) != '"' {
		return "", &FieldError{CodeWrongType, pointer, "expected a string, got " + kindName(raw)}
	}
	b, err := jsontext.AppendUnquote(nil, raw)
	if err != nil {
		return "", &FieldError{CodeInvalidValue, pointer, "holds half a surrogate pair"}
	}
	return string(b), nil
}

// pointerTo appends a name to a JSON Pointer fragment (RFC 6901, sections 3 and 6).
func pointerTo(pointer, name string) string {
	if len(name) > 100 { // a hostile name is shown, not carried about
		name = name[:100] + "…"
	}
	if strings.ContainsAny(name, "~/") {
		name = strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
	}
	return pointer + "/" + name
}

// PointerAt returns the JSON Pointer fragment of item i of the array at pointer.
func PointerAt(pointer string, i int) string { return pointer + "/" + strconv.Itoa(i) }

// DecodeStrict reads one JSON object of a request into v: unknown, repeated and
// wrongly typed members are refused with their pointer, at any depth; those that
// are unknown or repeated on the top level all at once. known are the names that
// exist there. A null is a wrong type but where a type reads its own JSON, which
// then says what null means.
func DecodeStrict(data []byte, v any, known ...string) error {
	if f := checkJSON(data, "#"); f != nil {
		return &ValidationError{Fields: []FieldError{*f}}
	}
	names := make(map[string]struct{}, len(known))
	for _, name := range known {
		names[name] = struct{}{}
	}
	fields := walkObject(data, "#", func(name string, _ []byte) *FieldError {
		if _, ok := names[name]; !ok {
			return unknownField(pointerTo("#", name))
		}
		return nil
	})
	if len(fields) > 0 {
		return &ValidationError{Fields: fields}
	}
	return DecodeMember(data, "#", v)
}

// DecodeMember reads the value of a member of a request, which stands at pointer,
// into v, as strictly as DecodeStrict, which data must have come through.
func DecodeMember(data []byte, pointer string, v any) error {
	err := json.Unmarshal(data, v, json.RejectUnknownMembers(true), json.WithUnmarshalers(json.UnmarshalFromFunc(refuseNull)))
	if err == nil {
		return nil
	}
	if invalid, ok := errors.AsType[*ValidationError](err); ok { // from a type's own UnmarshalJSON
		return invalid
	}
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok { // of what checkJSON lets pass
		pointer = pointerBelow(pointer, syntax.JSONPointer)
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return Invalid(CodeDuplicateField, pointer, "given twice")
		}
		return Invalid(CodeInvalidValue, pointer, "holds half a surrogate pair")
	}
	wrong, ok := errors.AsType[*json.SemanticError](err)
	if !ok {
		return Invalid(CodeInvalidJSON, pointer, "not readable: "+err.Error())
	}
	pointer = pointerBelow(pointer, wrong.JSONPointer)
	if errors.Is(err, json.ErrUnknownName) {
		return &ValidationError{Fields: []FieldError{*unknownField(pointer)}}
	}
	return Invalid(CodeWrongType, pointer, kindName([]byte{byte(wrong.JSONKind)})+" cannot stand here")
}

// refuseNull leaves to the others (errors.ErrUnsupported) what is no null, and
// what a type reads itself. Without it null would be the zero value, which in an
// organization or account means: all of them.
func refuseNull(dec *jsontext.Decoder, v any) error {
	if _, own := v.(json.Unmarshaler); own || dec.PeekKind() != 'n' {
		return errors.ErrUnsupported
	}
	return &json.SemanticError{JSONKind: 'n'}
}

func unknownField(pointer string) *FieldError {
	return &FieldError{CodeUnknownField, pointer, "no such field here"}
}

// pointerBelow appends a JSON Pointer to a fragment.
func pointerBelow(pointer string, below jsontext.Pointer) string {
	for name := range below.Tokens() {
		pointer = pointerTo(pointer, name)
	}
	return pointer
}
