package api

import (
	"slices"
	"strings"

	"github.com/postrider/postrider/schemas"
)

// headerBody is a header as a body brings it. A sensitive one may leave out its
// value, which is never shown, to keep the one that it has.
type headerBody struct {
	Name      string  `json:"name"`
	Value     *string `json:"value"`
	Sensitive bool    `json:"sensitive"`
}

// authBody is how a body says that requests authenticate. Likewise it may leave
// out password or token where the type stays.
type authBody struct {
	Type     string  `json:"type"`
	Username string  `json:"username"`
	Password *string `json:"password"`
	Token    *string `json:"token"`
}

// setHeaders gives a webhook the headers of a body.
func (s *Server) setHeaders(w *schemas.Webhook, body []headerBody) error {
	before := w.Headers
	w.Headers = nil
	var errs []error
	for i, h := range body {
		header, err := s.header(w, before, h)
		if err != nil {
			err = schemas.Invalid(err.Code(), schemas.PointerAt("#/headers", i)+err.Fields[0].Pointer, err.Fields[0].Detail)
			errs = append(errs, err)
		}
		w.Headers = append(w.Headers, header)
	}
	return joinFields(errs...)
}

// header makes one header, sealed where it is sensitive. A refusal's pointer is from the header on.
func (s *Server) header(w *schemas.Webhook, before []schemas.Header, h headerBody) (schemas.Header, *schemas.ValidationError) {
	header := schemas.Header{Name: h.Name}
	switch {
	case h.Value == nil && h.Sensitive:
		at := slices.IndexFunc(before, func(b schemas.Header) bool { return b.Sealed != nil && strings.EqualFold(b.Name, h.Name) })
		if at < 0 {
			return header, schemas.Invalid(schemas.CodeRequired, "/value", "missing: there is none to be kept")
		}
		header.Sealed = before[at].Sealed
	case h.Value == nil:
		return header, schemas.Invalid(schemas.CodeRequired, "/value", "missing")
	case !schemas.ValidHeaderValue(*h.Value):
		return header, schemas.Invalid(schemas.CodeInvalidValue, "/value", "a header's value is "+schemas.HeaderValueRule)
	case !h.Sensitive:
		header.Value = *h.Value
	default:
		sealed, err := s.KeyRing.Seal(w.HeaderIdentity(h.Name), []byte(*h.Value))
		if err != nil {
			panic("BUG: the key ring was checked at the start: " + err.Error())
		}
		header.Sealed = &sealed
	}
	return header, nil
}

// setAuth gives a webhook the authentication of a body; nil takes it away.
func (s *Server) setAuth(w *schemas.Webhook, body *authBody) error {
	before := w.Auth
	w.Auth = nil
	if body == nil {
		return nil
	}
	secret, other, name := body.Password, body.Token, "password"
	if body.Type == schemas.AuthBearer {
		secret, other, name = body.Token, body.Password, "token"
	}
	w.Auth = &schemas.Auth{Type: body.Type, Username: body.Username}
	switch {
	case other != nil, body.Type == schemas.AuthBearer && body.Username != "":
		return schemas.Invalid(schemas.CodeInvalidValue, "#/auth", "basic has a username and a password, bearer has a token")
	case body.Type == schemas.AuthBasic && body.Username == "":
		return schemas.Invalid(schemas.CodeRequired, "#/auth/username", "missing or empty")
	case secret == nil && before != nil && before.Type == body.Type:
		w.Auth.Sealed = before.Sealed
		return nil
	case secret == nil || *secret == "":
		return schemas.Invalid(schemas.CodeRequired, "#/auth/"+name, "missing or empty")
	case !schemas.ValidHeaderValue(*secret) || body.Type == schemas.AuthBearer && strings.ContainsRune(*secret, ' '):
		return schemas.Invalid(schemas.CodeInvalidValue, "#/auth/"+name, schemas.HeaderValueRule+", a token without spaces")
	}
	sealed, err := s.KeyRing.Seal(w.AuthIdentity(), []byte(*secret))
	if err != nil {
		return err
	}
	w.Auth.Sealed = sealed
	return nil
}

// checkCredentials holds the rule between headers and auth: one Authorization.
func checkCredentials(w *schemas.Webhook) error {
	for i, h := range w.Headers {
		if w.Auth != nil && strings.EqualFold(h.Name, "Authorization") {
			return schemas.Invalid(schemas.CodeInvalidValue, schemas.PointerAt("#/headers", i)+"/name", "auth sets this header: have one of the two")
		}
	}
	return nil
}
