package schemas

import "encoding/base64"

// EventFromAttributes reads an event in binary mode: attributes without their
// prefix, and the data (Kafka protocol binding 1.0.2 section 3.2, HTTP 1.0.2
// section 3.1). An attribute given twice is refused.
func EventFromAttributes(attributes []Attribute, contentType string, data []byte) (Event, error) {
	e := Event{cloud: true}
	var (
		fields      []FieldError
		specVersion string
		seen        = make(map[string]struct{}, len(attributes))
	)
	for _, a := range attributes {
		if _, twice := seen[a.Name]; twice {
			fields = append(fields, FieldError{CodeDuplicateField, pointerTo("#", a.Name), "given twice"})
			continue
		}
		seen[a.Name] = struct{}{}
		if f := e.setAttribute(a, &specVersion); f != nil {
			fields = append(fields, *f)
		}
	}
	fields = append(fields, e.checkCloud(specVersion)...)
	if contentType != "" && !IsJSON(contentType) && len(data) > 0 {
		fields = append(fields, FieldError{CodeUnsupportedContent, "#/datacontenttype", "data must be JSON (application/json)"})
	} else if f := e.setPayload(data, "#/data"); f != nil {
		fields = append(fields, *f)
	}
	return e.checked(fields)
}

// DecodeCloudEvent reads an event in structured mode (CloudEvents JSON format 1.0.2).
func DecodeCloudEvent(data []byte) (Event, error) {
	e := Event{cloud: true}
	if f := checkJSON(data, "#"); f != nil {
		return e, &ValidationError{Fields: []FieldError{*f}}
	}
	var (
		specVersion string
		hasData     bool
	)
	fields := walkObject(data, "#", func(name string, raw []byte) *FieldError {
		pointer := pointerTo("#", name)
		switch name {
		case "data", "data_base64":
			if hasData {
				return &FieldError{CodeInvalidCloudEvent, pointer, "data and data_base64 exclude each other"}
			}
			hasData = true
			if name == "data" {
				return e.takePayload(raw, pointer)
			}
			return e.setBase64(raw, pointer)
		}
		value, present, f := attributeValue(raw, pointer)
		if f != nil || !present {
			return f
		}
		return e.setAttribute(Attribute{name, value}, &specVersion)
	})
	fields = append(fields, e.checkCloud(specVersion)...)
	return e.checked(fields)
}

// setBase64 takes data_base64: the payload is what it encodes.
func (e *Event) setBase64(raw []byte, pointer string) *FieldError {
	text, f := stringValue(raw, pointer)
	if f != nil {
		return f
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return &FieldError{CodeInvalidCloudEvent, pointer, "not base64 (RFC 4648, section 4)"}
	}
	return e.setPayload(data, pointer)
}

// attributeValue gives an attribute its text form; null means that it is absent.
func attributeValue(raw []byte, pointer string) (value string, present bool, f *FieldError) {
	switch kindOf(raw) {
	case '"':
		value, f = stringValue(raw, pointer)
		return value, f == nil, f
	case 'n':
		return "", false, nil
	case '{', '[':
		return "", false, &FieldError{CodeInvalidCloudEvent, pointer, "an attribute is a string, boolean or integer, not " + kindName(raw)}
	default:
		return string(raw), true, nil
	}
}

// setAttribute sets one attribute of a CloudEvent.
func (e *Event) setAttribute(a Attribute, specVersion *string) *FieldError {
	switch a.Name {
	case attrSpecVersion:
		*specVersion = a.Value
	case attrID:
		e.ID = a.Value
	case attrType:
		e.Name = a.Value
	case attrSource:
		e.Source = a.Value
	case attrSubject:
		e.Subject = a.Value
	case attrOrganization:
		e.Organization = a.Value
	case attrAccount:
		e.Account = a.Value
	case attrTime:
		return e.setTime(a.Value)
	case attrDataContentType:
		if !IsJSON(a.Value) {
			return &FieldError{CodeUnsupportedContent, "#/datacontenttype", "data must be JSON (application/json)"}
		}
	default:
		return e.addExtension(a)
	}
	return nil
}

// addExtension carries an attribute along that is none of Postrider's business.
func (e *Event) addExtension(a Attribute) *FieldError {
	pointer := pointerTo("#", a.Name)
	switch {
	case len(e.Extensions) == maxExtensions:
		return &FieldError{CodeTooLarge, pointer, "more than 32 extension attributes"}
	case len(a.Name) > 64 || !isAttributeName(a.Name):
		return &FieldError{CodeInvalidCloudEvent, pointer, "an attribute's name is made of 1 to 64 of a-z and 0-9"}
	case len(a.Value) > 1024 || !isText(a.Value):
		return &FieldError{CodeInvalidValue, pointer, "an attribute is at most 1,024 bytes of UTF-8 without control characters"}
	}
	e.Extensions = append(e.Extensions, a)
	return nil
}

// checkCloud says what CloudEvents 1.0 requires and is missing.
func (e *Event) checkCloud(specVersion string) []FieldError {
	var fields []FieldError
	if specVersion != "1.0" {
		fields = append(fields, FieldError{CodeInvalidCloudEvent, "#/specversion", `must be "1.0"`})
	}
	for _, a := range []Attribute{{attrID, e.ID}, {attrSource, e.Source}} {
		if a.Value == "" {
			fields = append(fields, FieldError{CodeRequired, "#/" + a.Name, "required by CloudEvents 1.0"})
		}
	}
	return fields
}
