package schemas

import (
	"errors"
	"reflect"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/go-playground/validator/v10"
)

// rules returns the one validator. Tags hold the shape of a field; rules that
// relate fields are functions beside the type.
//
//nolint:gochecknoglobals // built once: it caches every type's tags
var rules = sync.OnceValue(func() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(f reflect.StructField) string {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		return name
	})
	for tag, valid := range map[string]func(string) bool{
		"eventname": ValidName,
		"pattern":   ValidPattern,
		"text":      isText,
		"scope":     ValidScope,
		"delay":     validDelay,

		"format":      validFormat,
		"headername":  ValidHeaderName,
		"headervalue": ValidHeaderValue,
	} {
		err := v.RegisterValidation(tag, func(f validator.FieldLevel) bool { return valid(f.Field().String()) })
		if err != nil {
			panic("BUG: registering rule " + tag + ": " + err.Error())
		}
	}
	registerWhole(v, "schedule", validSchedule)
	registerWhole(v, "headers", validHeaders)
	return v
})

// registerWhole registers a rule over a field as a whole, such as all items of a list.
func registerWhole[T any](v *validator.Validate, tag string, valid func(T) bool) {
	err := v.RegisterValidation(tag, func(f validator.FieldLevel) bool {
		value, ok := reflect.TypeAssert[T](f.Field())
		return ok && valid(value)
	})
	if err != nil {
		panic("BUG: registering rule " + tag + ": " + err.Error())
	}
}

// isText reports whether s is UTF-8 without control characters: fit for a
// header, a log line and a table.
func isText(s string) bool {
	for _, r := range s {
		if unicode.IsControl(r) {
			return false
		}
	}
	return utf8.ValidString(s)
}

// isShortASCII reports whether s is at most limit printable ASCII characters.
func isShortASCII(s string, limit int) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= limit
}

// isAttributeName reports whether s can name a CloudEvents attribute (1.0, "Naming Conventions").
func isAttributeName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// Validate says what is wrong with a value by its tags. The error is a *ValidationError.
func Validate(v any) error {
	if fields := fieldErrors(v); len(fields) > 0 {
		return &ValidationError{Fields: fields}
	}
	return nil
}

func fieldErrors(v any) []FieldError {
	var broken validator.ValidationErrors
	if !errors.As(rules().Struct(v), &broken) {
		return nil
	}
	fields := make([]FieldError, 0, len(broken))
	for _, b := range broken {
		fields = append(fields, FieldError{Code: codeOf(b), Pointer: pointerOf(b.Namespace()), Detail: detailOf(b)})
	}
	return fields
}

// pointerOf turns Type.events[0] into #/events/0.
func pointerOf(namespace string) string {
	_, path, _ := strings.Cut(namespace, ".")
	return "#/" + strings.NewReplacer("[", "/", "]", "", ".", "/").Replace(withoutEmbedded(path))
}

// withoutEmbedded takes the names of embedded structs off a path of Go's: they
// begin with a capital, those of JSON's members do not.
func withoutEmbedded(path string) string {
	for path != "" && path[0] >= 'A' && path[0] <= 'Z' {
		_, path, _ = strings.Cut(path, ".")
	}
	return path
}

func codeOf(b validator.FieldError) Code {
	switch {
	case b.Tag() == "required":
		return CodeRequired
	case isNumber(b):
		return CodeInvalidValue
	case b.Tag() == "max":
		return CodeTooLarge
	case b.Tag() == "min" && reflect.ValueOf(b.Value()).Len() == 0:
		return CodeRequired
	default:
		return CodeInvalidValue
	}
}

func isNumber(b validator.FieldError) bool {
	return b.Kind() >= reflect.Int && b.Kind() <= reflect.Float64
}

// detailOf says a broken rule in words.
func detailOf(b validator.FieldError) string {
	if isNumber(b) && (b.Tag() == "min" || b.Tag() == "max") {
		return map[string]string{"min": "must be at least ", "max": "must be at most "}[b.Tag()] + b.Param()
	}
	unit := "characters"
	if k := b.Kind(); k == reflect.Slice || k == reflect.Map {
		unit = "items"
	}
	switch b.Tag() {
	case "required":
		return "missing or empty"
	case "max":
		return "over " + b.Param() + " " + unit
	case "min":
		return "must have at least " + b.Param() + " " + unit
	case "unique":
		return "the same twice"
	case "eventname":
		return "an event's name is <service>.<method>, 1 to 200 of A-Z a-z 0-9 . _ -"
	case "pattern":
		return `a pattern is "*", "*.<method>", "<service>" or "<service>.<method>", 1 to 200 of A-Z a-z 0-9 . _ -`
	case "text":
		return "must be UTF-8 without control characters"
	case "scope":
		return "a scope is one of " + strings.Join(Scopes(), ", ")
	case "delay":
		return "a delay is a duration from 1s to 168h, such as 30s, 5m or 1h30m"
	case "schedule":
		return "over 168h in all"
	case "headers":
		return "the same name twice"
	case "format":
		return "must be plain or cloudevents"
	case "headername":
		return "not a header that a webhook may set: 1 to 100 token characters, none that frames the message or is Postrider's own"
	case "headervalue":
		return "a header's value is " + HeaderValueRule
	case "excludes":
		return "must not hold " + b.Param()
	case "oneof":
		return "must be one of " + strings.ReplaceAll(b.Param(), " ", ", ")
	default:
		return "breaks the rule " + b.Tag()
	}
}
