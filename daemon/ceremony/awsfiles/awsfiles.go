// Package awsfiles reads the files in which AWS hands out import parameters: the console's ImportParameters.zip, in today's layout and the
// older one, the same unpacked, and the JSON, binary, base64 or PEM files that people make of aws kms get-parameters-for-import.
//
// It reads strictly: what is broken, swapped, bloated or of two downloads is refused with the reason. Source: AWS KMS Developer Guide,
// "Download the wrapping public key and import token"; AWS CLI Command Reference, kms get-parameters-for-import.
package awsfiles

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Parameters are what AWS's files hold. What they do not tell is empty.
type Parameters struct {
	PublicKey   []byte // DER SubjectPublicKeyInfo
	Spec        string // RSA_2048, RSA_3072 or RSA_4096
	Algorithm   string // the wrapping algorithm that the README names
	ImportToken []byte
	KeyID       string    // key ID or ARN
	ValidTo     time.Time // ParametersValidTo
	Made        time.Time // the time of the files: KMS takes what is wrapped for 24 hours from the download on
	Files       []string
}

// Error says why files are not taken.
type Error struct{ Reason string }

func (e *Error) Error() string { return e.Reason }

// Class is "caller".
func (e *Error) Class() string { return "caller" }

func refuse(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// Limits of what is read.
const (
	maxFile    = 64 << 10
	maxArchive = 256 << 10
	maxFiles   = 8
)

// Life is how long KMS takes what is wrapped, from the download on.
const Life = 24 * time.Hour

// file is one file with its base name.
type file struct {
	name string
	data []byte
	time time.Time
}

// Read reads a .zip, a folder, a JSON file, or a file with a public key.
func Read(path string) (Parameters, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Parameters{}, refuse("the import files cannot be read: %v", err)
	}
	if info.IsDir() {
		files, err := folder(path)
		if err != nil {
			return Parameters{}, err
		}
		return classify(files)
	}
	f, err := readFile(path, maxArchive)
	if err != nil {
		return Parameters{}, err
	}
	return f.parameters()
}

// parameters reads one file: an archive, JSON or a public key.
func (f file) parameters() (Parameters, error) {
	switch {
	case bytes.HasPrefix(f.data, []byte("PK")):
		files, err := unzip(f.data)
		if err != nil {
			return Parameters{}, err
		}
		return classify(files)
	case len(f.data) > maxFile:
		return Parameters{}, refuse("%s has more than %d bytes: it holds no import parameters", f.name, maxFile)
	case bytes.HasPrefix(bytes.TrimSpace(f.data), []byte("{")):
		p, err := fromJSON(f.data)
		p.Files = []string{f.name}
		return p, err
	}
	p := Parameters{Made: f.time, Files: []string{f.name}}
	err := p.setKey(f)
	return p, err
}

func readFile(path string, most int64) (file, error) {
	in, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe that nobody writes to is refused below, not waited for
	if err != nil {
		return file{}, refuse("the import files cannot be read: %v", err)
	}
	defer in.Close() //nolint:errcheck // it was only read
	info, err := in.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return file{}, refuse("%s is not a regular file", filepath.Base(path))
	}
	b, err := io.ReadAll(io.LimitReader(in, most+1))
	if err != nil {
		return file{}, refuse("the import files cannot be read: %v", err)
	}
	if int64(len(b)) > most {
		return file{}, refuse("%s has more than %d bytes: it holds no import parameters", filepath.Base(path), most)
	}
	return file{filepath.Base(path), b, info.ModTime().UTC()}, nil
}

// folder reads the files of an unpacked download.
func folder(path string) ([]file, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, refuse("the import files cannot be read: %v", err)
	}
	var out []file
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return nil, refuse("%s is not a regular file: the folder has to hold the files of one download and nothing else", e.Name())
		}
		if len(out) == maxFiles {
			return nil, refuse("the folder has more than %d files: name one with a single download", maxFiles)
		}
		f, err := readFile(filepath.Join(path, e.Name()), maxFile)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// The names of the two layouts.
var (
	older  = regexp.MustCompile(`^(wrappingKey|importToken|README)_((?:mrk-)?[0-9a-fA-F-]{32,36})_([0-9A-Za-z-]{1,32})(\.txt)?$`)
	todays = map[string]string{"WrappingPublicKey.bin": "wrappingKey", "ImportToken.bin": "importToken", "README.txt": "README"} //nolint:gochecknoglobals // a table
)

// classify finds out which file is which, and reads them.
func classify(files []file) (Parameters, error) {
	var p Parameters
	byRole := map[string]file{}
	layout, id, stamp := "", "", ""
	for _, f := range files {
		role, now := todays[f.name], "today's"
		if m := older.FindStringSubmatch(f.name); role == "" && m != nil && (m[1] == "README") == (m[4] != "") {
			role, now = m[1], "the older"
			if id != "" && (id != m[2] || stamp != m[3]) {
				return p, refuse("%s is of another download than the other files (key ID or time in its name differ): put the files of one download alone", f.name)
			}
			id, stamp = m[2], m[3]
		}
		switch {
		case role == "":
			return p, refuse("%q is no file of an import: expected are WrappingPublicKey.bin, ImportToken.bin and README.txt, or wrappingKey_…, importToken_… and README_….txt; a renamed file is not guessed", f.name)
		case layout != "" && layout != now:
			return p, refuse("%s is of %s layout and the others are of %s: two downloads were mixed", f.name, now, layout)
		case byRole[role].name != "":
			return p, refuse("%s and %s are the same kind of file: put the files of one download alone", byRole[role].name, f.name)
		}
		layout, byRole[role] = now, f
		p.Files = append(p.Files, f.name)
		if p.Made.IsZero() || !f.time.IsZero() && f.time.Before(p.Made) {
			p.Made = f.time
		}
	}
	if err := sameTime(files); err != nil {
		return p, err
	}
	slices.Sort(p.Files)
	p.KeyID = id
	key, ok := byRole["wrappingKey"]
	if !ok {
		return p, refuse("there is no wrapping public key (WrappingPublicKey.bin, or wrappingKey_…): download the parameters again")
	}
	token, haveToken := byRole["importToken"]
	if err := p.setKey(key); err != nil {
		if _, kerr := parseKey(token.data); haveToken && kerr == nil {
			return p, refuse("%s and %s were swapped: the public key is in the file of the token", key.name, token.name)
		}
		return p, err
	}
	if haveToken {
		if err := p.setToken(token); err != nil {
			return p, err
		}
	}
	if readme, ok := byRole["README"]; ok {
		var err error
		if p.Algorithm, err = algorithmIn(readme); err != nil {
			return p, err
		}
	}
	return p, nil
}

// sameTime holds that the files are of one download, as far as their times tell: an import token of another one is opaque, and KMS refuses
// it only in the end.
func sameTime(files []file) error {
	const apart = 10 * time.Minute
	for _, f := range files {
		for _, g := range files {
			if f.time.IsZero() || g.time.IsZero() || g.time.Sub(f.time) <= apart {
				continue
			}
			return refuse("%s is of %s and %s of %s: they seem to be of two downloads, and KMS takes a key only with the import token that came with its public key; download them again",
				f.name, f.time.Format(time.RFC3339), g.name, g.time.Format(time.RFC3339))
		}
	}
	return nil
}

// setKey reads the wrapping public key.
func (p *Parameters) setKey(f file) error {
	der, err := parseKey(f.data)
	if err != nil {
		return refuse("%s is no wrapping public key: %v", f.name, err)
	}
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return refuse("%s is no wrapping public key: %v", f.name, err)
	}
	pub, ok := k.(*rsa.PublicKey)
	const exponent = 65537
	switch {
	case !ok:
		return refuse("%s is not an RSA public key but a %T: download the parameters for an RSA wrapping key spec", f.name, k)
	case pub.E != exponent:
		return refuse("%s has the exponent %d, and AWS's keys have %d", f.name, pub.E, exponent)
	case !slices.Contains([]int{2048, 3072, 4096}, pub.N.BitLen()):
		return refuse("%s has %d bits, and AWS's keys have 2048, 3072 or 4096", f.name, pub.N.BitLen())
	}
	p.PublicKey, p.Spec = der, fmt.Sprintf("RSA_%d", pub.N.BitLen())
	return nil
}

func (p *Parameters) setToken(f file) error {
	const least = 64
	token := f.data
	if t, err := decodeText(f.data); err == nil {
		token = t
	}
	if _, err := x509.ParsePKIXPublicKey(token); err == nil {
		return refuse("%s holds a public key and not an import token: two files were swapped, or one was copied twice", f.name)
	}
	if len(token) < least {
		return refuse("%s has %d bytes, which is too short for an import token: it was cut off", f.name, len(token))
	}
	p.ImportToken = token
	return nil
}

// parseKey finds the DER SubjectPublicKeyInfo in binary, base64 or PEM.
func parseKey(data []byte) ([]byte, error) {
	if len(data) == 0 {
		return nil, errors.New("it is empty")
	}
	if block, rest := pem.Decode(data); block != nil {
		if block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, errors.New("its PEM is not one PUBLIC KEY alone")
		}
		return block.Bytes, checkKey(block.Bytes)
	}
	if checkKey(data) == nil {
		return data, nil
	}
	if der, err := decodeText(data); err == nil {
		return der, checkKey(der)
	}
	return nil, checkKey(data)
}

func checkKey(der []byte) error {
	_, err := x509.ParsePKIXPublicKey(der)
	return err
}

// decodeText decodes base64, with line breaks or without.
func decodeText(data []byte) ([]byte, error) {
	clean := strings.NewReplacer("\n", "", "\r", "", " ", "").Replace(strings.Trim(strings.TrimSpace(string(data)), `"`))
	if clean == "" {
		return nil, errors.New("it is empty")
	}
	return base64.StdEncoding.Strict().DecodeString(clean)
}

var algorithms = regexp.MustCompile(`(?i)RSA[_ -]?AES[_ -]?KEY[_ -]?WRAP[_ -]?SHA[_ -]?(?:256|1)\b|RSAES[_ -]?OAEP[_ -]?SHA[_ -]?(?:256|1)\b|RSAES[_ -]?PKCS1[_ -]?V1[_. -]?5|SM2PKE`)

// algorithmIn finds the one wrapping algorithm that a README names.
func algorithmIn(f file) (string, error) {
	found := map[string]bool{}
	for _, m := range algorithms.FindAllString(string(f.data), -1) {
		found[canonical(m)] = true
	}
	if len(found) > 1 {
		var all []string
		for a := range found {
			all = append(all, a)
		}
		slices.Sort(all)
		return "", refuse("%s names several wrapping algorithms (%s): say by --algorithm for which one the parameters were downloaded", f.name, strings.Join(all, ", "))
	}
	for a := range found {
		return a, nil
	}
	return "", nil
}

// canonical is the name of an algorithm as the API has it.
func canonical(s string) string {
	s = strings.ToUpper(strings.NewReplacer("_", "", "-", "", " ", "", ".", "").Replace(s))
	return map[string]string{
		"RSAAESKEYWRAPSHA256": "RSA_AES_KEY_WRAP_SHA_256", "RSAAESKEYWRAPSHA1": "RSA_AES_KEY_WRAP_SHA_1",
		"RSAESOAEPSHA256": "RSAES_OAEP_SHA_256", "RSAESOAEPSHA1": "RSAES_OAEP_SHA_1", "RSAESPKCS1V15": "RSAES_PKCS1_V1_5", "SM2PKE": "SM2PKE",
	}[s]
}

// fromJSON reads the output of aws kms get-parameters-for-import.
func fromJSON(data []byte) (Parameters, error) {
	var p Parameters
	fields, err := flat(data)
	if err != nil {
		return p, refuse("this JSON is not the output of aws kms get-parameters-for-import: %v", err)
	}
	for name := range fields {
		if !slices.Contains([]string{"KeyId", "ImportToken", "PublicKey", "ParametersValidTo"}, name) {
			return p, refuse("this JSON is not the output of aws kms get-parameters-for-import: it has %q", name)
		}
	}
	text := func(name string) string {
		s, _ := fields[name].(string)
		return s
	}
	p.KeyID = text("KeyId")
	if err := p.setKey(file{name: "PublicKey", data: []byte(text("PublicKey"))}); err != nil {
		return p, err
	}
	if token := text("ImportToken"); token != "" {
		if err := p.setToken(file{name: "ImportToken", data: []byte(token)}); err != nil {
			return p, err
		}
	}
	switch v := fields["ParametersValidTo"].(type) {
	case nil:
	case string:
		if p.ValidTo, err = time.Parse(time.RFC3339, v); err != nil {
			return p, refuse("ParametersValidTo is %q, which is no time", v)
		}
	case json.Number:
		seconds, err := v.Float64()
		if err != nil || seconds < 0 || seconds > 1<<40 {
			return p, refuse("ParametersValidTo is %s, which is no time", v)
		}
		p.ValidTo = time.Unix(int64(seconds), 0)
	default:
		return p, refuse("ParametersValidTo is no time")
	}
	p.ValidTo = p.ValidTo.UTC().Truncate(time.Second)
	return p, nil
}

// flat reads an object of texts and numbers. A name that stands there twice is an error.
func flat(data []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is no object")
	}
	out := map[string]any{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		value, err := d.Token()
		if err != nil {
			return nil, err
		}
		n, _ := name.(string)
		if _, nested := value.(json.Delim); nested {
			return nil, fmt.Errorf("%q is not a plain value", n)
		}
		if _, twice := out[n]; twice {
			return nil, fmt.Errorf("%q stands there twice", n)
		}
		out[n] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows it")
	}
	return out, nil
}

// Until is until when KMS takes what is wrapped, as far as the files tell: what they say, or 24 hours after they were made.
func (p Parameters) Until() time.Time {
	switch {
	case !p.ValidTo.IsZero():
		return p.ValidTo
	case !p.Made.IsZero():
		return p.Made.Add(Life).UTC().Truncate(time.Second)
	}
	return time.Time{}
}
