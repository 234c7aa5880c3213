package configs_test

import (
	"strings"
	"testing"

	"hsmbridge/configs"
)

// TestEnvironmentIsTheModules holds that a token's environment cannot put another server in the place of AWS KMS.
func TestEnvironmentIsTheModules(t *testing.T) {
	for name, good := range map[string]bool{
		"SOFTHSM2_CONF": true, "ChrystokiConfigurationPath": true, "TPM2_PKCS11_STORE": true,
		"AWS_ENDPOINT_URL_KMS": false, "AWS_CA_BUNDLE": false, "HTTPS_PROXY": false, "https_proxy": false, "SSL_CERT_FILE": false, "LD_PRELOAD": false,
	} {
		text := "tokens:\n  - {name: demo, module: /x.so, uri: \"pkcs11:token=demo\", pin_prompt: true, environment: {" + name + ": x}}\n"
		_, err := configs.Parse("c.yaml", []byte(text))
		if (err == nil) != good || err != nil && !strings.Contains(err.Error(), "steers the whole process") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
