package kmsclient

import (
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestDescribeKey(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0).UTC() }
	replica := strings.Replace(testARN, testRegion, "us-east-1", 1)
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
		answerJSON(t, w, 200, map[string]any{"KeyMetadata": map[string]any{
			"Arn": testARN, "KeyId": keyID(testARN), "AWSAccountId": "111122223333", "Description": "payments", "KeySpec": "SYMMETRIC_DEFAULT",
			"KeyUsage": "ENCRYPT_DECRYPT", "KeyManager": "CUSTOMER", "Origin": "EXTERNAL", "KeyState": "Enabled", "Enabled": true,
			"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": 1800000000, "CurrentKeyMaterialId": materialID,
			"CreationDate": 1600000000, "DeletionDate": 1900000000, "MultiRegion": true, "CustomKeyStoreId": "cks-1",
			"MultiRegionConfiguration": map[string]any{
				"MultiRegionKeyType": "PRIMARY", "PrimaryKey": map[string]string{"Arn": testARN, "Region": testRegion},
				"ReplicaKeys": []map[string]string{{"Arn": replica, "Region": "us-east-1"}},
			},
			"EncryptionAlgorithms": []string{"SYMMETRIC_DEFAULT"}, "SigningAlgorithms": []string{"ECDSA_SHA_256"},
			"MacAlgorithms": []string{"HMAC_SHA_256"}, "KeyAgreementAlgorithms": []string{"ECDH"},
		}})
	})
	c := newTestClient(t, s.URL)
	want := KeyInfo{
		ARN: testARN, KeyID: keyID(testARN), AccountID: "111122223333", Description: "payments", KeySpec: "SYMMETRIC_DEFAULT",
		KeyUsage: "ENCRYPT_DECRYPT", KeyManager: "CUSTOMER", Origin: "EXTERNAL", State: "Enabled", Enabled: true,
		ExpirationModel: "KEY_MATERIAL_EXPIRES", ValidTo: at(1800000000), CurrentKeyMaterialID: materialID,
		CreationDate: at(1600000000), DeletionDate: at(1900000000), MultiRegion: true, Primary: true, PrimaryARN: testARN, ReplicaARNs: []string{replica},
		CustomKeyStoreID: "cks-1", EncryptionAlgorithms: []string{"SYMMETRIC_DEFAULT"}, SigningAlgorithms: []string{"ECDSA_SHA_256"},
		MACAlgorithms: []string{"HMAC_SHA_256"}, KeyAgreementAlgorithms: []string{"ECDH"},
	}
	v := reflect.ValueOf(want)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%s is not tested", v.Type().Field(i).Name)
		}
	}
	for _, name := range []string{testARN, "alias/payments", keyID(testARN)} {
		if got, err := c.DescribeKey(t.Context(), name); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	if _, err := c.DescribeKey(t.Context(), strings.Replace(testARN, "1111", "9999", 1)); Code(err) != codeNotKMS {
		t.Errorf("answer about another key: %v", err)
	}
}

// Servers that are older than KeySpec still say what kind of key it is.
func TestDescribeKeyCustomerMasterKeySpec(t *testing.T) {
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
		answerJSON(t, w, 200, map[string]any{"KeyMetadata": map[string]any{"Arn": testARN, "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT"}})
	})
	got, err := newTestClient(t, s.URL).DescribeKey(t.Context(), testARN)
	if err != nil || got.KeySpec != "SYMMETRIC_DEFAULT" || !got.ValidTo.IsZero() {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestCreateKey(t *testing.T) {
	for spec, usage := range map[string]string{
		"SYMMETRIC_DEFAULT": "ENCRYPT_DECRYPT", "": "ENCRYPT_DECRYPT", "HMAC_224": "GENERATE_VERIFY_MAC", "HMAC_512": "GENERATE_VERIFY_MAC",
		"RSA_2048": "SIGN_VERIFY", "ECC_NIST_P256": "SIGN_VERIFY", "ECC_SECG_P256K1": "SIGN_VERIFY", "ECC_NIST_EDWARDS25519": "SIGN_VERIFY",
	} {
		s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int) { describe(t, w) })
		c := newTestClient(t, s.URL)
		got, err := c.CreateKey(t.Context(), CreateKeyRequest{KeySpec: spec})
		if err != nil || got.ARN != testARN {
			t.Errorf("got %+v, %v", got, err)
		}
		want := map[string]any{"Origin": "EXTERNAL", "KeyUsage": usage, "KeySpec": spec}
		if spec == "" {
			delete(want, "KeySpec")
		}
		if sent := s.seen()[0].Body; !reflect.DeepEqual(sent, want) {
			t.Errorf("sent %v, want %v", sent, want)
		}
	}
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int) { describe(t, w) })
	c := newTestClient(t, s.URL)
	if _, err := c.CreateKey(t.Context(), CreateKeyRequest{
		KeySpec: "RSA_2048", KeyUsage: "ENCRYPT_DECRYPT", Description: "d", MultiRegion: true, Tags: map[string]string{"b": "2", "a": "1"},
	}); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"Origin": "EXTERNAL", "KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "RSA_2048", "Description": "d", "MultiRegion": true,
		"Tags": []any{map[string]any{"TagKey": "a", "TagValue": "1"}, map[string]any{"TagKey": "b", "TagValue": "2"}},
	}
	if sent := s.seen()[0].Body; !reflect.DeepEqual(sent, want) {
		t.Errorf("sent %v, want %v", sent, want)
	}
}

func TestCreateAlias(t *testing.T) {
	s := newServer(t, func(http.ResponseWriter, *http.Request, int) {})
	if err := newTestClient(t, s.URL).CreateAlias(t.Context(), "alias/payments", testARN); err != nil {
		t.Fatal(err)
	}
	if sent := s.seen()[0].Body; !reflect.DeepEqual(sent, map[string]any{"AliasName": "alias/payments", "TargetKeyId": testARN}) {
		t.Errorf("sent %v", sent)
	}
}

func TestProofs(t *testing.T) {
	for _, tc := range []struct {
		name string
		call func(c *Client) ([]byte, error)
		in   map[string]any
		out  string
	}{
		{
			"GetPublicKey", func(c *Client) ([]byte, error) { return c.GetPublicKey(t.Context(), testARN) },
			map[string]any{"KeyId": testARN},
			"PublicKey",
		},
		{
			"GenerateMac", func(c *Client) ([]byte, error) {
				return c.GenerateMAC(t.Context(), testARN, "HMAC_SHA_256", []byte("m"))
			},
			map[string]any{"KeyId": testARN, "Message": "bQ==", "MacAlgorithm": "HMAC_SHA_256"},
			"Mac",
		},
		{
			"Sign", func(c *Client) ([]byte, error) { return c.Sign(t.Context(), testARN, "ECDSA_SHA_256", []byte("m")) },
			map[string]any{"KeyId": testARN, "Message": "bQ==", "MessageType": "RAW", "SigningAlgorithm": "ECDSA_SHA_256"},
			"Signature",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answers := []map[string]string{
				{"KeyId": testARN, tc.out: "dmFsdWU="},
				{"KeyId": testARN},
				{tc.out: "dmFsdWU="},
				{"KeyId": strings.Replace(testARN, "1234", "4321", 1), tc.out: "dmFsdWU="},
			}
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request, n int) { answerJSON(t, w, 200, answers[n-1]) })
			c := newTestClient(t, s.URL)
			if got, err := tc.call(c); err != nil || string(got) != "value" {
				t.Errorf("got %q, %v", got, err)
			}
			if sent := s.seen()[0]; sent.Operation != tc.name || !reflect.DeepEqual(sent.Body, tc.in) {
				t.Errorf("sent %v", sent)
			}
			for _, what := range []string{"without a value", "about no key", "about another key"} {
				if got, err := tc.call(c); Code(err) != codeNotKMS || got != nil {
					t.Errorf("%s: got %q, %v", what, got, err)
				}
			}
		})
	}
}
