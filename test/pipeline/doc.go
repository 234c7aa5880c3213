// Package pipeline times `hsmbridge import` beside what people do today: the AWS CLI, base64, pkcs11-tool and openssl in a shell script, against the same
// emulator and the same token.
package pipeline
