package ceremony_test

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/ceremony"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
)

// files packs files as AWS's console does: deflated, with the time of the download.
func packed(t *testing.T, at time.Time, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i+1 < len(files); i += 2 {
		w, err := z.CreateHeader(&zip.FileHeader{Name: files[i], Method: zip.Deflate, Modified: at})
		if err == nil {
			_, err = w.Write([]byte(files[i+1]))
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

const readme = "AWS KMS import parameters\n\nWrapping algorithm: RSAES_OAEP_SHA_1\nWrapping key spec: RSA_4096\n"

// TestAWSFiles takes AWS's own files into the room and EncryptedKeyMaterial.bin to KMS, with the AWS CLI at both ends. That KMS holds the
// HSM's key is what hsmbridge proves afterwards, by a wrap of its own.
func TestAWSFiles(t *testing.T) {
	emu := e2e.StartEmulator(t)
	c := emu.Client()
	var arns []string
	for range 4 {
		arns = append(arns, emu.CreateKey(c, wrapping.SymmetricDefault))
	}
	w := newWorld(t, ", endpoint: "+emu.Endpoint, "", arns...)
	w.tok.Generate(t, "payments", "01")
	type parameters struct{ PublicKey, ImportToken string }
	var fetched []parameters
	var answers []string
	for _, arn := range arns {
		answer := emu.AWS("get-parameters-for-import", "--key-id", arn, "--wrapping-algorithm", "RSAES_OAEP_SHA_1", "--wrapping-key-spec", "RSA_4096", "--output", "json")
		var p parameters
		if err := json.Unmarshal([]byte(answer), &p); err != nil {
			t.Fatal(err)
		}
		fetched, answers = append(fetched, p), append(answers, answer)
	}
	binary := func(s string) string {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	now := time.Now().UTC()
	id, stamp := arns[2][strings.LastIndexByte(arns[2], '/')+1:], now.Format("0102150405")
	w.write("cli/WrappingPublicKey.bin", []byte(binary(fetched[3].PublicKey)))
	w.write("cli/ImportToken.bin", []byte(binary(fetched[3].ImportToken)))
	for i, tc := range []struct {
		name, from string
		flags      []string
	}{
		{"json", w.write("parameters.json", []byte(answers[0])), []string{"--algorithm", "RSAES_OAEP_SHA_1"}},
		{"today", w.write("today/ImportParameters.zip", packed(t, now, "WrappingPublicKey.bin", binary(fetched[1].PublicKey), "ImportToken.bin", binary(fetched[1].ImportToken), "README.txt", readme)), nil},
		{"older", w.write("older/ImportParameters.zip", packed(t, now, "wrappingKey_"+id+"_"+stamp, binary(fetched[2].PublicKey), "importToken_"+id+"_"+stamp, binary(fetched[2].ImportToken), "README_"+id+"_"+stamp+".txt", readme)), nil},
		{"binary", filepath.Join(w.dir, "cli"), []string{"--algorithm", "RSAES_OAEP_SHA_1"}},
	} {
		room := filepath.Join(w.dir, "room-"+tc.name)
		if err := os.Mkdir(room, 0o700); err != nil {
			t.Fatal(err)
		}
		ask := append([]string{"request", "-c", w.config, "--from", tc.from, "--out", room, "payments", arns[i]}, tc.flags...)
		if out, code := w.hsmceremony(ask...); code != 0 {
			t.Fatalf("%s: exit code %d\n%s", tc.name, code, out)
		}
		if out, code := w.hsmceremony(ask...); code != 4 || !strings.Contains(out, "a request was made of these files already") {
			t.Errorf("%s, once more: exit code %d\n%s", tc.name, code, out)
		}
		requests, err := filepath.Glob(filepath.Join(room, "*"+ceremony.RequestExt))
		if err != nil || len(requests) != 1 {
			t.Fatalf("%v, %v", requests, err)
		}
		w.all(0, requests[0])
		emu.AWS("import-key-material", "--key-id", arns[i], "--encrypted-key-material", "fileb://"+filepath.Join(room, ceremony.MaterialBin),
			"--import-token", "fileb://"+w.write(tc.name+".token", []byte(binary(fetched[i].ImportToken))), "--expiration-model", "KEY_MATERIAL_DOES_NOT_EXPIRE")
	}
	out, code := w.run("hsmbridge", "-c", w.config, "import", "payments")
	if n := strings.Count(out, "material-id-match"); code != 0 || n != len(arns) || strings.Count(out, "unchanged") != n {
		t.Errorf("KMS does not hold the HSM's key everywhere: exit code %d\n%s", code, out)
	}

	// The public key of one download and the import token of another: what came with them says it, or KMS does.
	mixed := w.write("mixed.json", []byte(strings.Replace(answers[0], fetched[0].PublicKey, fetched[1].PublicKey, 1)))
	if err := os.Mkdir(filepath.Join(w.dir, "mixed"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, code := w.hsmceremony("request", "-c", w.config, "--from", mixed, "--algorithm", "RSAES_OAEP_SHA_1", "--out", filepath.Join(w.dir, "mixed"), "payments", arns[1]); code != 4 || !strings.Contains(out, "the files are for the KMS key "+arns[0]) {
		t.Errorf("exit code %d\n%s", code, out)
	}
	cmd := exec.CommandContext(t.Context(), "aws", "--endpoint-url", emu.Endpoint, "kms", "import-key-material", "--key-id", arns[0], "--encrypted-key-material", "fileb://"+filepath.Join(w.dir, "room-today", ceremony.MaterialBin),
		"--import-token", "fileb://"+filepath.Join(w.dir, "json.token"), "--expiration-model", "KEY_MATERIAL_DOES_NOT_EXPIRE")
	cmd.Env = e2e.Environ()
	if answer, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("KMS took a key under one download's public key with another's token: %s", answer)
	}
}

// TestAWSFilesRefused holds what is said of files that are not as AWS made them, or too old.
func TestAWSFilesRefused(t *testing.T) {
	w := newWorld(t, "", "", arn)
	_, keys := w.requestOf("unused", nil)
	der := string(derOf(t, keys[0]))
	token := strings.Repeat("import token ", 100)
	answer := func(validTo time.Time, key string) []byte {
		b, err := json.Marshal(map[string]any{
			"KeyId": arn, "PublicKey": base64.StdEncoding.EncodeToString([]byte(key)), "ImportToken": base64.StdEncoding.EncodeToString([]byte(token)), "ParametersValidTo": validTo.Format(time.RFC3339),
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	now := time.Now().UTC()
	good := packed(t, now, "WrappingPublicKey.bin", der, "ImportToken.bin", token, "README.txt", readme)
	sha256 := strings.ReplaceAll(readme, "RSAES_OAEP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256")
	other := strings.ReplaceAll(arn[strings.LastIndexByte(arn, '/')+1:], "1234", "9999")
	for name, tc := range map[string]struct {
		file string
		data []byte
		says string
	}{
		"expired":         {"p.json", answer(now.Add(-time.Minute), der), "the import parameters expired at"},
		"nearly expired":  {"p.json", answer(now.Add(10*time.Minute), der), "and at least 15m0s must be left"},
		"for ever":        {"p.json", answer(now.Add(48*time.Hour), der), "AWS gives 24 hours"},
		"old":             {"p.zip", packed(t, now.Add(-25*time.Hour), "WrappingPublicKey.bin", der, "ImportToken.bin", token, "README.txt", readme), "the import parameters expired at"},
		"broken":          {"p.json", answer(now.Add(time.Hour), der[:200]), "is no wrapping public key"},
		"truncated":       {"p.zip", good[:len(good)/2], "is broken or cut off"},
		"truncated JSON":  {"p.json", answer(now.Add(time.Hour), der)[:300], "is not the output of aws kms get-parameters-for-import"},
		"swapped":         {"p.zip", packed(t, now, "WrappingPublicKey.bin", token, "ImportToken.bin", der, "README.txt", readme), "were swapped: the public key is in the file of the token"},
		"renamed":         {"p.zip", packed(t, now, "PublicKey.bin", der, "ImportToken.bin", token), "a renamed file is not guessed"},
		"another KMS key": {"p.zip", packed(t, now, "wrappingKey_"+other+"_1126", der, "importToken_"+other+"_1126", token), "the files are for the KMS key " + other},
		"two downloads":   {"p.zip", packed(t, now, "wrappingKey_"+other+"_1126", der, "importToken_"+other+"_1125", token), "is of another download than the other files"},
		"nested":          {"p.zip", packed(t, now, "../WrappingPublicKey.bin", der), "with a folder in its name"},
		"many":            {"p.zip", packed(t, now, strings.Split(strings.Repeat("x,y,", 12), ",")[:24]...), "and an import has three"},
		"twice":           {"p.zip", packed(t, now, "README.txt", readme, "README.txt", readme), "README.txt twice"},
		"bomb":            {"p.zip", packed(t, now, "WrappingPublicKey.bin", strings.Repeat("\x00", 32<<20)), "it holds no import parameters"},
		"other algorithm": {"p.zip", packed(t, now, "WrappingPublicKey.bin", der, "README.txt", sha256), "download them for one of [RSAES_OAEP_SHA_256 RSAES_OAEP_SHA_1"},
	} {
		out, code := w.hsmceremony("request", "-c", w.config, "--from", w.write(filepath.Join("bad", name, tc.file), tc.data), "--out", w.dir, "payments", arn)
		if strings.HasSuffix(tc.file, ".json") {
			out, code = w.hsmceremony("request", "-c", w.config, "--algorithm", "RSAES_OAEP_SHA_1", "--from", filepath.Join(w.dir, "bad", name, tc.file), "--out", w.dir, "payments", arn)
		}
		if code != 4 || !strings.Contains(out, tc.says) {
			t.Errorf("%s: exit code %d, want 4 and %q:\n%s", name, code, tc.says, out)
		}
	}
	if left, err := filepath.Glob(filepath.Join(w.dir, "*"+ceremony.RequestExt)); err != nil || len(left) > 0 {
		t.Errorf("there is a request: %v, %v", left, err)
	}
}
