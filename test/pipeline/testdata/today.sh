#!/usr/bin/env bash
# today.sh ARN LABEL: the import as it is done by hand, after "Importing key material" in the AWS KMS Developer Guide. pkcs11-tool 0.23 cannot wrap under
# OAEP (CKR_ARGUMENTS_BAD), so that the key is read out of the token and encrypted by openssl: it lies in a file in the clear meanwhile,
# and only a key that is not sensitive can be taken this way at all. MODULE, TOKEN, PIN_FILE, ENDPOINT and WORK say where.
set -euo pipefail
arn=$1 label=$2

aws --endpoint-url "$ENDPOINT" kms get-parameters-for-import --key-id "$arn" \
  --wrapping-algorithm RSAES_OAEP_SHA_256 --wrapping-key-spec RSA_4096 --query '[PublicKey,ImportToken]' --output text >"$WORK/parameters"
cut -f1 "$WORK/parameters" | base64 -d >"$WORK/WrappingPublicKey.bin"
cut -f2 "$WORK/parameters" | base64 -d >"$WORK/ImportToken.bin"

pkcs11-tool --module "$MODULE" --token-label "$TOKEN" --login --pin "$(cat "$PIN_FILE")" \
  --read-object --type secrkey --label "$label" --output-file "$WORK/PlaintextKeyMaterial.bin" >/dev/null 2>&1
openssl pkeyutl -encrypt -in "$WORK/PlaintextKeyMaterial.bin" -out "$WORK/EncryptedKeyMaterial.bin" -keyform DER -pubin -inkey "$WORK/WrappingPublicKey.bin" \
  -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256
rm -f "$WORK/PlaintextKeyMaterial.bin"

aws --endpoint-url "$ENDPOINT" kms import-key-material --key-id "$arn" --encrypted-key-material "fileb://$WORK/EncryptedKeyMaterial.bin" \
  --import-token "fileb://$WORK/ImportToken.bin" --expiration-model KEY_MATERIAL_DOES_NOT_EXPIRE
