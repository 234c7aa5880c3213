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
		Label      string `json:"label,omitempty"`      // CKA_LABEL of the new key object
		Generation string `json:"generation,omitempty"` // number of the generation, from 1
	}
	// Parameters tells: KMS gave a wrapping public key and an import token, or refused to.
	Parameters struct {
		Algorithm       string `json:"wrapping_algorithm,omitempty"`  // in AWS's spelling, such as RSAES_OAEP_SHA_256
		WrappingKeySpec string `json:"wrapping_key_spec,omitempty"`   // such as RSA_4096
		SHA256          string `json:"wrapping_key_sha256,omitempty"` // of the wrapping public key, DER SubjectPublicKeyInfo
		ValidTo         string `json:"valid_to,omitempty"`            // when they expire, RFC 3339
		Code            string `json:"code,omitempty"`                // of a refusal by KMS
		RequestID       string `json:"request_id,omitempty"`          // of AWS, to find the entry of CloudTrail
	}
	// Allowed tells: immediately before a wrap the approval was checked again.
	Allowed struct {
		Request  string `json:"request,omitempty"`  // name of the request
		Purpose  string `json:"purpose,omitempty"`  // what was approved: import, standing
		Officers string `json:"officers,omitempty"` // names, separated by commas
		SHA256   string `json:"sha256,omitempty"`   // of the text that they signed
	}
	// Wrap tells: the token wrapped the key.
	Wrap struct {
		Mechanism string `json:"mechanism,omitempty"`           // PKCS#11 name
		SHA256    string `json:"wrapping_key_sha256,omitempty"` // of the wrapping public key
		Output    string `json:"output_sha256,omitempty"`       // of what came out, which is what KMS gets
	}
	// Imported tells: KMS took key material, or what it did was read back.
	Imported struct {
		RequestID     string `json:"request_id,omitempty"`      // of AWS, to find the entry of CloudTrail
		KeyMaterialID string `json:"key_material_id,omitempty"` // of symmetric keys
	}
	// Reason tells: something with a reason, such as a proof that cannot be had.
	Reason struct {
		Reason string `json:"reason,omitempty"` // why there is none
	}
	// Material tells: something was done to one key material.
	Material struct {
		KeyMaterialID string `json:"key_material_id,omitempty"` // which one
	}
	// Generation tells: a key object of a later generation is used.
	Generation struct {
		Generation string `json:"generation,omitempty"` // number of the generation, from 1
	}
	// Replica tells: what a token holds of a key that several tokens hold.
	Replica struct {
		Token    string `json:"token,omitempty"`    // its name in the configuration
		Identity string `json:"identity,omitempty"` // what tells the material: check value, public key, MAC; none: it is not there, or the token does not tell
		Expected string `json:"expected,omitempty"` // what it has to be, where it is another key
	}
	// Outcome tells: how an import ended.
	Outcome struct {
		Result string `json:"result,omitempty"` // imported, reimported, restored, unchanged, waits, failed, unknown: KMS does not show whether it took it
		Proof  string `json:"proof,omitempty"`  // what shows that KMS holds the same key
	}
	// Finished tells: how an attempt of a job ended.
	Finished struct {
		State      string `json:"state,omitempty"`       // done, failed, waiting, queued, cancelled
		ErrorClass string `json:"error_class,omitempty"` // caller, session, token, library, kms, database
		ErrorCode  string `json:"error_code,omitempty"`  // CKR, AWS or own code
		NotBefore  string `json:"not_before,omitempty"`  // when it is tried again, RFC 3339
	}
	// Token tells: something happened to a token.
	Token struct {
		Token string `json:"token,omitempty"` // its name in the configuration
	}
	// Configuration tells: which configuration counts from here on.
	Configuration struct {
		SHA256   string `json:"sha256,omitempty"`          // of the file, and of the files of officers that it names
		Policies string `json:"policies_sha256,omitempty"` // of who has to approve what
		Keys     string `json:"keys,omitempty"`            // how many
		Tokens   string `json:"tokens,omitempty"`          // how many
		Version  string `json:"version,omitempty"`         // of hsmbridge
	}
	// Request tells: officers are asked to approve something. The text is whole, so that the signatures can be checked with the log alone.
	Request struct {
		Request    string `json:"request,omitempty"`     // its name
		Purpose    string `json:"purpose,omitempty"`     // what is asked for
		SHA256     string `json:"sha256,omitempty"`      // of the text
		ValidUntil string `json:"valid_until,omitempty"` // RFC 3339
		Text       string `json:"text,omitempty"`        // what officers sign, whole
	}
	// Signature tells: an officer approved or rejected a request.
	Signature struct {
		Request   string `json:"request,omitempty"`           // its name
		SHA256    string `json:"sha256,omitempty"`            // of the text that was signed
		Officer   string `json:"officer,omitempty"`           // name
		Key       string `json:"key,omitempty"`               // SHA-256 fingerprint of the SSH key
		Hardware  string `json:"hardware,omitempty"`          // yes: the key is in an authenticator (sk-*)
		Present   string `json:"user_presence,omitempty"`     // yes: the authenticator was touched
		Verified  string `json:"user_verification,omitempty"` // yes: the authenticator asked for a PIN or a fingerprint
		Signature string `json:"signature,omitempty"`         // as ssh-keygen wrote it
		Reason    string `json:"reason,omitempty"`            // of a rejection, or why a signature does not count
	}
	// Decision tells: a request was approved, used, rejected, withdrawn, or its time ran out.
	Decision struct {
		Request  string `json:"request,omitempty"`  // its name
		SHA256   string `json:"sha256,omitempty"`   // of the text
		Officers string `json:"officers,omitempty"` // names, separated by commas
		Reason   string `json:"reason,omitempty"`   // why, where there is a why
	}
	// Checkpointed tells: the key that signs checkpoints.
	Checkpointed struct {
		SHA256   string `json:"sha256,omitempty"`     // of the public key
		Verifier string `json:"verifier,omitempty"`   // log's name and key hash, as in the signature lines
		Public   string `json:"public_key,omitempty"` // DER SubjectPublicKeyInfo in base64
	}
	// Ceremony tells: a record of a ceremony's own log, taken over as it is.
	Ceremony struct {
		Request string `json:"request,omitempty"` // name of the request
		Origin  string `json:"origin,omitempty"`  // of that log
		N       string `json:"n,omitempty"`       // its number there
		Hash    string `json:"hash,omitempty"`    // its leaf hash there
		Record  string `json:"record,omitempty"`  // as it is there
	}
	// Step tells: a step of a ceremony.
	Step struct {
		Request   string `json:"request,omitempty"`             // name of the request
		SHA256    string `json:"sha256,omitempty"`              // of the request's text
		File      string `json:"file,omitempty"`                // that was read or written
		FileSHA   string `json:"file_sha256,omitempty"`         // of that file
		Key       string `json:"wrapping_key_sha256,omitempty"` // of the wrapping public key
		HSM       string `json:"hsm,omitempty"`                 // manufacturer and model
		Serial    string `json:"serial,omitempty"`              // of the HSM
		Firmware  string `json:"firmware,omitempty"`            // of the HSM
		Mechanism string `json:"mechanism,omitempty"`           // PKCS#11 name
		Person    string `json:"person,omitempty"`              // who typed the confirmation
		Detail    string `json:"detail,omitempty"`              // what was compared, or why it ended
	}
	// Journal tells: an event of a time before the log, of a kind or with fields that are not kept any more.
	Journal struct {
		Kind   string `json:"kind,omitempty"`   // as it was called then
		Fields string `json:"fields,omitempty"` // names and values, JSON
	}
	// None tells: there is nothing to tell beyond the message.
	None struct{}
)

// kinds is the table of all kinds.
func kinds() map[Kind]func() any {
	return map[Kind]func() any{
		// a job
		"queued":     of[None],       // a job was made: by the schedule, or by a person
		"preflight":  of[Preflight],  // KMS and the token were asked what is there
		"generate":   of[Generate],   // a key was made in the token
		"generation": of[Generation], // a key object of a later generation is used
		"backup":     of[None],       // the backup token holds a copy of the key
		"replica":    of[Replica],    // what a token holds of a key that several tokens hold is otherwise than before, or was compared
		"intent":     of[Intent],     // what will be done now
		"parameters": of[Parameters], // KMS gave a wrapping public key and an import token, or refused to
		"allowed":    of[Allowed],    // immediately before a wrap the approval was checked again
		"wrap":       of[Wrap],       // the token wrapped the key
		"import":     of[Imported],   // KMS took key material, or that it did was read back
		"proof":      of[Reason],     // whether KMS holds the same key was proved, or could not be
		"rotate":     of[Material],   // KMS is asked to encrypt with another material from now on
		"rotated":    of[Material],   // KMS encrypts with another material
		"delete":     of[None],       // KMS is asked to delete key material
		"deleted":    of[Material],   // KMS deleted key material
		"observed":   of[None],       // KMS was asked what it holds
		"outcome":    of[Outcome],    // how one import ended, also when it failed
		"finished":   of[Finished],   // how an attempt of a job ended, also when it failed
		"reclaimed":  of[None],       // a job of a daemon that is gone is done again
		"cancelled":  of[None],       // a job was cancelled
		"retry":      of[None],       // errors were forgotten, and what failed is tried again
		// a person, or the daemon itself
		"pause":           of[None],          // nothing is begun for a key any more
		"resume":          of[None],          // jobs of a key begin again
		"revoke":          of[None],          // a key was revoked: its material is deleted from KMS
		"restore":         of[None],          // a revocation was taken back
		"waiver":          of[None],          // a key may be imported although no second token holds a copy
		"parked":          of[Token],         // a token is not used until a person says so
		"unparked":        of[Token],         // a token may be used again
		"start":           of[Configuration], // the daemon started with this configuration
		"stop":            of[None],          // the daemon ended
		"reload":          of[Configuration], // the configuration was read again, or refused
		"clock":           of[None],          // the clock was set
		"database-backup": of[None],          // the database was copied
		"retention":       of[None],          // jobs that ended long ago were deleted from the database; their records stay
		"audit-key":       of[Checkpointed],  // the key that signs checkpoints from here on
		"journal":         of[Journal],       // an event of a time before the log, of a kind or with fields that are not kept any more
		// approvals
		"request":           of[Request],   // officers are asked to approve something
		"approval":          of[Signature], // an officer signed the request
		"rejection":         of[Signature], // an officer signed that the request is rejected
		"refused-signature": of[Signature], // a signature was handed in that does not count
		"approved":          of[Decision],  // enough officers have signed
		"used":              of[Decision],  // what was approved was done
		"rejected":          of[Decision],  // the request is closed, because an officer rejected it
		"withdrawn":         of[Decision],  // the request is closed without anything done by it
		"expired":           of[Decision],  // the request is closed, because its time is over
		// ceremonies
		"ceremony":        of[Ceremony], // a record of the log of an HSM room, taken over as it is
		"ceremony-fetch":  of[Step],     // online: import parameters were fetched into a request
		"ceremony-open":   of[Step],     // in the room: a request was opened
		"ceremony-check":  of[Step],     // in the room: something was compared, and a person confirmed it
		"ceremony-wrap":   of[Step],     // in the room: the token wraps the key next, and afterwards that it did
		"ceremony-write":  of[Step],     // in the room: the wrapped key was written
		"ceremony-end":    of[Step],     // in the room: how it ended
		"ceremony-upload": of[Step],     // online: the wrapped key was imported into KMS, or was refused
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
