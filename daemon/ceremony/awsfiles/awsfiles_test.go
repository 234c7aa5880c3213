package awsfiles

import (
	"archive/zip"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const keyID = "1234abcd-12ab-34cd-56ef-1234567890ab"

var wrappingKey = sync.OnceValue(func() []byte { return publicKey(2048) })

func publicKey(bits int) []byte {
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return marshal(&k.PublicKey)
}

func marshal(k any) []byte {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		panic(err)
	}
	return der
}

var token = bytes.Repeat([]byte{0xA5, 1, 2, 3}, 300)

const readme = "To import your key material, wrap it with the wrapping public key.\nWrapping algorithm: RSAES_OAEP_SHA_256\n"

func today() map[string][]byte {
	return map[string][]byte{"WrappingPublicKey.bin": wrappingKey(), "ImportToken.bin": token, "README.txt": []byte(readme)}
}

func older1() map[string][]byte {
	const stamp = "0804092022"
	return map[string][]byte{"wrappingKey_" + keyID + "_" + stamp: wrappingKey(), "importToken_" + keyID + "_" + stamp: token, "README_" + keyID + "_" + stamp + ".txt": []byte(readme)}
}

// archive packs files, each by method.
func archive(t testing.TB, files map[string][]byte, method uint16) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, data := range files {
		w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: method, Modified: time.Date(2026, 11, 24, 1, 2, 4, 0, time.UTC)})
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func unpacked(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func cli(fields map[string]any) []byte {
	b, err := json.MarshalIndent(fields, "", "    ")
	if err != nil {
		panic(err)
	}
	return b
}

const arn = "arn:aws:kms:eu-central-1:111122223333:key/" + keyID

func fields() map[string]any {
	return map[string]any{
		"KeyId": arn, "ImportToken": base64.StdEncoding.EncodeToString(token),
		"PublicKey": base64.StdEncoding.EncodeToString(wrappingKey()), "ParametersValidTo": "2026-11-25T03:04:05.123000+01:00",
	}
}

func TestRead(t *testing.T) {
	base := base64.StdEncoding.EncodeToString(wrappingKey())
	var broken strings.Builder
	for i := 0; i < len(base); i += 76 {
		broken.WriteString(base[i:min(i+76, len(base))] + "\n")
	}
	epoch := fields()
	epoch["ParametersValidTo"] = json.Number("1795572245.123")
	cases := map[string]struct {
		path                    string
		algorithm, key, validTo string
		token                   bool
	}{
		"today's archive":          {write(t, "ImportParameters.zip", archive(t, today(), zip.Deflate)), "RSAES_OAEP_SHA_256", "", "2026-11-25T01:02:04Z", true},
		"today's archive, stored":  {write(t, "ImportParameters.zip", archive(t, today(), zip.Store)), "RSAES_OAEP_SHA_256", "", "2026-11-25T01:02:04Z", true},
		"the older archive":        {write(t, "ImportParameters.zip", archive(t, older1(), zip.Deflate)), "RSAES_OAEP_SHA_256", keyID, "2026-11-25T01:02:04Z", true},
		"today's, unpacked":        {unpacked(t, today()), "RSAES_OAEP_SHA_256", "", "", true},
		"the older, unpacked":      {unpacked(t, older1()), "RSAES_OAEP_SHA_256", keyID, "", true},
		"only the key, unpacked":   {unpacked(t, map[string][]byte{"WrappingPublicKey.bin": wrappingKey()}), "", "", "", false},
		"JSON":                     {write(t, "p.json", cli(fields())), "", arn, "2026-11-25T02:04:05Z", true},
		"JSON with seconds":        {write(t, "p.json", cli(epoch)), "", arn, "2026-11-25T02:04:05Z", true},
		"binary":                   {write(t, "key.bin", wrappingKey()), "", "", "", false},
		"base64":                   {write(t, "key.b64", []byte(base+"\n")), "", "", "", false},
		"base64 with line breaks":  {write(t, "key.b64", []byte(broken.String())), "", "", "", false},
		"base64 with CRLF":         {write(t, "key.b64", []byte(strings.ReplaceAll(broken.String(), "\n", "\r\n"))), "", "", "", false},
		"base64 as the CLI quotes": {write(t, "key.b64", []byte(`"`+base+`"`)), "", "", "", false},
		"PEM":                      {write(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: wrappingKey()})), "", "", "", false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p, err := Read(tc.path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p.PublicKey, wrappingKey()) || p.Spec != "RSA_2048" || p.Algorithm != tc.algorithm || p.KeyID != tc.key {
				t.Errorf("%s %q %q", p.Spec, p.Algorithm, p.KeyID)
			}
			if tc.token != bytes.Equal(p.ImportToken, token) {
				t.Errorf("the token has %d bytes", len(p.ImportToken))
			}
			if tc.validTo != "" && p.Until().Format(time.RFC3339) != tc.validTo {
				t.Errorf("valid until %s, want %s", p.Until(), tc.validTo)
			}
			if p.Until().IsZero() {
				t.Error("it is not told until when")
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	with := func(files map[string][]byte, name string, data []byte) map[string][]byte {
		if data == nil {
			delete(files, name)
		} else {
			files[name] = data
		}
		return files
	}
	field := func(name string, value any) []byte {
		f := fields()
		if value == nil {
			delete(f, name)
		} else {
			f[name] = value
		}
		return cli(f)
	}
	packed := archive(t, today(), zip.Deflate)
	bomb := archive(t, map[string][]byte{"WrappingPublicKey.bin": make([]byte, 64<<20)}, zip.Deflate)
	liar := bytes.Clone(archive(t, map[string][]byte{"WrappingPublicKey.bin": make([]byte, 200<<10)}, zip.Deflate))
	for i := 0; i+28 < len(liar); i++ { // the directory says that it is short
		if bytes.Equal(liar[i:i+4], []byte("PK\x01\x02")) {
			copy(liar[i+24:], []byte{100, 0, 0, 0})
		}
	}
	twice := func() []byte {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		for range 2 {
			w, err := z.Create("WrappingPublicKey.bin")
			if err == nil {
				_, err = w.Write(wrappingKey())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}()
	link := func() []byte {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		h := &zip.FileHeader{Name: "WrappingPublicKey.bin"}
		h.SetMode(os.ModeSymlink | 0o777)
		w, err := z.CreateHeader(h)
		if err == nil {
			_, err = w.Write([]byte("/etc/shadow"))
		}
		if err != nil || z.Close() != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}()
	linked := unpacked(t, with(today(), "ImportToken.bin", nil))
	if err := os.Symlink("/etc/passwd", filepath.Join(linked, "ImportToken.bin")); err != nil {
		t.Fatal(err)
	}
	nine := map[string][]byte{}
	for i := range 9 {
		nine[fmt.Sprintf("file%d", i)] = []byte("x")
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	odd, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	odd.E = 3
	mixed := today()
	for name, data := range older1() {
		mixed[name] = data
	}
	other := with(older1(), "importToken_"+keyID+"_0804092022", nil)
	other["importToken_"+keyID+"_0904092022"] = token
	otherKey := with(older1(), "importToken_"+keyID+"_0804092022", nil)
	otherKey["importToken_9999abcd-12ab-34cd-56ef-1234567890ab_0804092022"] = token
	for name, tc := range map[string]struct{ path, says string }{
		"cut archive":              {write(t, "a.zip", packed[:len(packed)-30]), "broken or cut off"},
		"damaged archive":          {write(t, "a.zip", append(bytes.Clone(packed[:60]), bytes.Repeat([]byte{0xff}, len(packed)-60)...)), "broken or cut off"},
		"zip bomb":                 {write(t, "a.zip", bomb), "would have 67108864 bytes"},
		"zip bomb that lies":       {write(t, "a.zip", liar), "WrappingPublicKey.bin in the archive"},
		"large file":               {write(t, "a.zip", append([]byte("PK"), make([]byte, 300<<10)...)), "more than"},
		"too many":                 {write(t, "a.zip", archive(t, nine, zip.Store)), "the archive has 9 files"},
		"too many, unpacked":       {unpacked(t, nine), "no file of an import|more than 8 files"},
		"a folder in a name":       {write(t, "a.zip", archive(t, map[string][]byte{"../../etc/x": []byte("x")}, zip.Store)), "with a folder in its name"},
		"a backslash in a name":    {write(t, "a.zip", archive(t, map[string][]byte{`a\b`: []byte("x")}, zip.Store)), "with a folder in its name"},
		"twice in the archive":     {write(t, "a.zip", twice), "WrappingPublicKey.bin twice"},
		"a link in the archive":    {write(t, "a.zip", link), "is not a regular file"},
		"a link in the folder":     {linked, "ImportToken.bin is not a regular file"},
		"an unknown file":          {unpacked(t, with(today(), "notes.txt", []byte("x"))), `"notes.txt" is no file of an import`},
		"a renamed file":           {unpacked(t, with(with(today(), "ImportToken.bin", nil), "token.bin", token)), "a renamed file is not guessed"},
		"two downloads":            {unpacked(t, mixed), "two downloads were mixed"},
		"another time":             {unpacked(t, other), "is of another download"},
		"another key ID":           {unpacked(t, otherKey), "is of another download"},
		"no key":                   {unpacked(t, with(today(), "WrappingPublicKey.bin", nil)), "there is no wrapping public key"},
		"swapped":                  {unpacked(t, map[string][]byte{"WrappingPublicKey.bin": token, "ImportToken.bin": wrappingKey()}), "were swapped"},
		"the key twice":            {unpacked(t, with(today(), "ImportToken.bin", wrappingKey())), "holds a public key and not an import token"},
		"a short token":            {unpacked(t, with(today(), "ImportToken.bin", token[:20])), "was cut off"},
		"a cut key":                {unpacked(t, with(today(), "WrappingPublicKey.bin", wrappingKey()[:100])), "is no wrapping public key"},
		"bytes after the key":      {write(t, "key.bin", append(bytes.Clone(wrappingKey()), 0)), "is no wrapping public key"},
		"an empty key":             {write(t, "key.bin", nil), "it is empty"},
		"EC":                       {write(t, "key.bin", marshal(&ec.PublicKey)), "is not an RSA public key"},
		"RSA-1024":                 {write(t, "key.bin", publicKey(1024)), "has 1024 bits"},
		"another exponent":         {write(t, "key.bin", marshal(&odd.PublicKey)), "has the exponent 3"},
		"two PEM blocks":           {write(t, "key.pem", bytes.Repeat(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: wrappingKey()}), 2)), "not one PUBLIC KEY alone"},
		"another PEM":              {write(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: wrappingKey()})), "not one PUBLIC KEY alone"},
		"two algorithms":           {unpacked(t, with(today(), "README.txt", []byte("RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1"))), "names several wrapping algorithms (RSAES_OAEP_SHA_1, RSAES_OAEP_SHA_256)"},
		"JSON with more":           {write(t, "p.json", field("Extra", "x")), `it has "Extra"`},
		"JSON with a list":         {write(t, "p.json", field("PublicKey", []string{"x"})), "is not a plain value"},
		"JSON without a key":       {write(t, "p.json", field("PublicKey", nil)), "PublicKey is no wrapping public key: it is empty"},
		"JSON with no time":        {write(t, "p.json", field("ParametersValidTo", "tomorrow")), "which is no time"},
		"JSON with a time of bool": {write(t, "p.json", field("ParametersValidTo", true)), "is no time"},
		"JSON twice":               {write(t, "p.json", append(cli(fields()), cli(fields())...)), "something follows it"},
		"a name twice":             {write(t, "p.json", []byte(`{"KeyId":"a","KeyId":"b"}`)), "stands there twice"},
		"nothing":                  {filepath.Join(t.TempDir(), "nothing"), "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read(tc.path)
			if err == nil {
				t.Fatal("it was taken")
			}
			for says := range strings.SplitSeq(tc.says, "|") {
				if strings.Contains(err.Error(), says) {
					return
				}
			}
			t.Errorf("%v does not say %q", err, tc.says)
		})
	}
}

func TestAlgorithms(t *testing.T) {
	for text, want := range map[string]string{
		"Wrapping algorithm: RSAES_OAEP_SHA_1.":                      "RSAES_OAEP_SHA_1",
		"wrapping algorithm\nrsaes-oaep-sha-256":                     "RSAES_OAEP_SHA_256",
		"use RSAES_PKCS1_V1_5 padding":                               "RSAES_PKCS1_V1_5",
		"RSA_AES_KEY_WRAP_SHA_256, that is RSA AES KEY WRAP SHA 256": "RSA_AES_KEY_WRAP_SHA_256",
		"nothing about it":                                           "",
		"SM2PKE":                                                     "SM2PKE",
	} {
		if got, err := algorithmIn(file{name: "README.txt", data: []byte(text)}); err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

// TestTwoDownloads: the import token is opaque, so the times of the files are all that tells.
func TestTwoDownloads(t *testing.T) {
	dir := unpacked(t, today())
	at := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "ImportToken.bin"), at, at); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(dir); err == nil || !strings.Contains(err.Error(), "they seem to be of two downloads") {
		t.Error(err)
	}
}

// FuzzFolder: what is taken of an unpacked download gives the same again when it is written as today's layout has it.
func FuzzFolder(f *testing.F) {
	f.Add(wrappingKey(), token, []byte(readme))
	f.Add([]byte(base64.StdEncoding.EncodeToString(wrappingKey())), []byte(base64.StdEncoding.EncodeToString(token)), []byte{})
	f.Fuzz(func(t *testing.T, key, token, text []byte) {
		at := time.Unix(1800000000, 0)
		files := []file{{"WrappingPublicKey.bin", key, at}, {"ImportToken.bin", token, at}, {"README.txt", text, at}}
		p, err := classify(files)
		if err != nil {
			return
		}
		files[0].data, files[1].data, files[2].data = p.PublicKey, []byte(base64.StdEncoding.EncodeToString(p.ImportToken)), []byte(p.Algorithm)
		again, err := classify(files)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(p) {
			t.Errorf("%+v\nand again\n%+v, %v", p, again, err)
		}
	})
}

func FuzzRead(f *testing.F) {
	f.Add(archive(f, today(), zip.Deflate))
	f.Add(archive(f, older1(), zip.Store))
	f.Add(cli(fields()))
	f.Add(wrappingKey())
	f.Add([]byte(base64.StdEncoding.EncodeToString(wrappingKey())))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := file{name: "file", data: data, time: time.Unix(1800000000, 0)}.parameters()
		if err == nil && (p.Spec == "" || checkKey(p.PublicKey) != nil) {
			t.Errorf("taken without a key: %+v", p)
		}
	})
}

func FuzzREADME(f *testing.F) {
	f.Add([]byte(readme))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := algorithmIn(file{name: "README.txt", data: data})
		if err == nil && a != "" && canonical(a) != a {
			t.Errorf("%q is no name of an algorithm", a)
		}
	})
}
