package audit

import (
	"reflect"
	"slices"
	"strings"
)

// The structs of the kinds. Every value is text, so that a record reads the same everywhere; a value that does not apply is left out.
// What is here stays as it is: a new value gets a new field at the end, a new thing a new kind.
type (
	// Preflight tells: KMS and the token were asked what is there.
	Preflight struct {
		State  string `json:"state,omitempty"`  // of the KMS key
		Action string `json:"action,omitempty"` // import, restore, reimport, keep
	}
	// Intent tells: this is what will be done.
	Intent struct {
		Plan string `json:"plan,omitempty"` // its SHA-256
	}
	// Generate tells: a key was made in the token.
	Generate struct {
		Label      string `json:"label,omitempty"`
		Generation string `json:"generation,omitempty"`
	}
	// Parameters tells: KMS gave a wrapping public key and an import token, or refused to.
	Parameters struct {
		Algorithm       string `json:"wrapping_algorithm,omitempty"`
		WrappingKeySpec string `json:"wrapping_key_spec,omitempty"`
		SHA256          string `json:"wrapping_key_sha256,omitempty"`
		ValidTo         string `json:"valid_to,omitempty"`
		Code            string `json:"code,omitempty"` // of a refusal
		RequestID       string `json:"request_id,omitempty"`
	}
	// Allowed tells: immediately before a wrap the approval was checked again.
	Allowed struct {
		Request  string `json:"request,omitempty"`
		Purpose  string `json:"purpose,omitempty"`
		Officers string `json:"officers,omitempty"` // names, separated by commas
		SHA256   string `json:"sha256,omitempty"`   // of the text that they signed
	}
	// Wrap tells: the token wrapped the key.
	Wrap struct {
		Mechanism string `json:"mechanism,omitempty"`
		SHA256    string `json:"wrapping_key_sha256,omitempty"` // of the wrapping public key
		Output    string `json:"output_sha256,omitempty"`       // of what came out
	}
	// Imported tells: KMS took key material, or what it did was read back.
	Imported struct {
		RequestID     string `json:"request_id,omitempty"`
		KeyMaterialID string `json:"key_material_id,omitempty"`
	}
	// Reason tells: something with a reason, such as a proof that cannot be had.
	Reason struct {
		Reason string `json:"reason,omitempty"`
	}
	// Material tells: something was done to one key material.
	Material struct {
		KeyMaterialID string `json:"key_material_id,omitempty"`
	}
	// Generation tells: a key object of a later generation is used.
	Generation struct {
		Generation string `json:"generation,omitempty"`
	}
	// Outcome tells: how an import ended.
	Outcome struct {
		Result string `json:"result,omitempty"`
		Proof  string `json:"proof,omitempty"`
	}
	// Finished tells: how an attempt of a job ended.
	Finished struct {
		State      string `json:"state,omitempty"`
		ErrorClass string `json:"error_class,omitempty"`
		ErrorCode  string `json:"error_code,omitempty"`
		NotBefore  string `json:"not_before,omitempty"`
	}
	// Token tells: something happened to a token.
	Token struct {
		Token string `json:"token,omitempty"`
	}
	// Configuration tells: which configuration counts from here on.
	Configuration struct {
		SHA256   string `json:"sha256,omitempty"` // of the file
		Policies string `json:"policies_sha256,omitempty"`
		Keys     string `json:"keys,omitempty"`
		Tokens   string `json:"tokens,omitempty"`
		Version  string `json:"version,omitempty"` // of hsmbridge
	}
	// Request tells: officers are asked to approve something. The text is whole, so that the signatures can be checked with the log alone.
	Request struct {
		Request    string `json:"request,omitempty"`
		Purpose    string `json:"purpose,omitempty"`
		SHA256     string `json:"sha256,omitempty"`
		ValidUntil string `json:"valid_until,omitempty"`
		Text       string `json:"text,omitempty"`
	}
	// Signature tells: an officer approved or rejected a request.
	Signature struct {
		Request   string `json:"request,omitempty"`
		SHA256    string `json:"sha256,omitempty"`
		Officer   string `json:"officer,omitempty"`
		Key       string `json:"key,omitempty"` // SHA-256 fingerprint of the SSH key
		Hardware  string `json:"hardware,omitempty"`
		Present   string `json:"user_presence,omitempty"`
		Verified  string `json:"user_verification,omitempty"`
		Signature string `json:"signature,omitempty"` // as ssh-keygen wrote it
		Reason    string `json:"reason,omitempty"`    // of a rejection, or why a signature does not count
	}
	// Decision tells: a request was approved, used, rejected, withdrawn, or its time ran out.
	Decision struct {
		Request  string `json:"request,omitempty"`
		SHA256   string `json:"sha256,omitempty"`
		Officers string `json:"officers,omitempty"`
		Reason   string `json:"reason,omitempty"`
	}
	// Checkpointed tells: the key that signs checkpoints.
	Checkpointed struct {
		SHA256   string `json:"sha256,omitempty"` // of the public key
		Verifier string `json:"verifier,omitempty"`
	}
	// Ceremony tells: a record of a ceremony's own log, taken over as it is.
	Ceremony struct {
		Request string `json:"request,omitempty"`
		Origin  string `json:"origin,omitempty"` // of that log
		N       string `json:"n,omitempty"`      // its number there
		Hash    string `json:"hash,omitempty"`   // its leaf hash there
		Record  string `json:"record,omitempty"` // as it is there
	}
	// Step tells: a step of a ceremony.
	Step struct {
		Request   string `json:"request,omitempty"`
		SHA256    string `json:"sha256,omitempty"`              // of the request's text
		File      string `json:"file,omitempty"`                // that was read or written
		FileSHA   string `json:"file_sha256,omitempty"`         //
		Key       string `json:"wrapping_key_sha256,omitempty"` //
		HSM       string `json:"hsm,omitempty"`                 // manufacturer and model
		Serial    string `json:"serial,omitempty"`              //
		Firmware  string `json:"firmware,omitempty"`            //
		Mechanism string `json:"mechanism,omitempty"`           //
		Person    string `json:"person,omitempty"`              // who typed the confirmation
		Detail    string `json:"detail,omitempty"`
	}
	// Journal tells: an event of a time before the log, of a kind or with fields that are not kept any more.
	Journal struct {
		Kind   string `json:"kind,omitempty"`
		Fields string `json:"fields,omitempty"` // JSON
	}
	// None tells: there is nothing to tell beyond the message.
	None struct{}
)

// kinds is the table of all kinds.
func kinds() map[Kind]func() any {
	return map[Kind]func() any{
		// a job
		"queued":     of[None],
		"preflight":  of[Preflight],
		"generate":   of[Generate],
		"generation": of[Generation],
		"backup":     of[None],
		"intent":     of[Intent],
		"parameters": of[Parameters],
		"allowed":    of[Allowed],
		"wrap":       of[Wrap],
		"import":     of[Imported],
		"proof":      of[Reason],
		"rotate":     of[Material],
		"rotated":    of[Material],
		"delete":     of[None],
		"deleted":    of[Material],
		"observed":   of[None],
		"outcome":    of[Outcome],
		"finished":   of[Finished],
		"reclaimed":  of[None],
		"cancelled":  of[None],
		"retry":      of[None],
		// a person, or the daemon itself
		"pause":           of[None],
		"resume":          of[None],
		"revoke":          of[None],
		"restore":         of[None],
		"waiver":          of[None],
		"parked":          of[Token],
		"unparked":        of[Token],
		"start":           of[Configuration],
		"stop":            of[None],
		"reload":          of[Configuration],
		"clock":           of[None],
		"database-backup": of[None],
		"audit-key":       of[Checkpointed],
		"journal":         of[Journal],
		// approvals
		"request":           of[Request],
		"approval":          of[Signature],
		"rejection":         of[Signature],
		"refused-signature": of[Signature],
		"approved":          of[Decision],
		"used":              of[Decision],
		"rejected":          of[Decision],
		"withdrawn":         of[Decision],
		"expired":           of[Decision],
		// ceremonies
		"ceremony":        of[Ceremony],
		"ceremony-fetch":  of[Step],
		"ceremony-open":   of[Step],
		"ceremony-check":  of[Step],
		"ceremony-wrap":   of[Step],
		"ceremony-write":  of[Step],
		"ceremony-end":    of[Step],
		"ceremony-upload": of[Step],
	}
}

func of[T any]() any { return new(T) }

// FieldNames are the names of a kind's fields, in their order; none of a kind that is not known.
func FieldNames(k Kind) []string {
	zero, ok := kinds()[k]
	if !ok {
		return nil
	}
	return fieldNames(zero())
}

func fieldNames(v any) []string {
	t := reflect.TypeOf(v).Elem()
	var out []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		out = append(out, name)
	}
	return out
}

func sortKinds(list []KindInfo) {
	slices.SortFunc(list, func(a, b KindInfo) int { return strings.Compare(string(a.Kind), string(b.Kind)) })
}
