package kmsclient

import (
	"net/http"
	"slices"
	"strings"
)

// row is one line of the error table: what a code means for an operation.
type row struct {
	codes     string    // separated by spaces; empty: any
	op        operation // empty: any
	status    int       // at least this HTTP status; 0: any
	class     string
	retryable bool
	cause     string // {op}, {region} and {account} are filled in
	fix       string
}

// lookUp finds the first row that fits. The last row fits everything.
func lookUp(op operation, d diagnosis) row {
	rows := errorTable()
	i := slices.IndexFunc(rows, func(r row) bool {
		return (r.codes == "" || slices.Contains(strings.Fields(r.codes), d.code)) && (r.op == "" || r.op == op) && d.status >= r.status
	})
	return rows[i]
}

// Codes that mean the same, the first as KMS spells it.
const (
	codesDenied  = "AccessDeniedException AccessDenied NotAuthorized UnauthorizedOperation"
	codesSigned  = "UnrecognizedClientException InvalidClientTokenId InvalidSignatureException SignatureDoesNotMatch IncompleteSignature IncompleteSignatureException MissingAuthenticationToken MissingAuthenticationTokenException AuthFailure"
	codesStale   = "ExpiredTokenException ExpiredToken RequestExpired RequestTimeTooSkewed"
	codesState   = "KMSInvalidStateException KMSInvalidState InvalidStateException"
	codesInvalid = "ValidationException ValidationError InvalidParameterValue SerializationException"
	codesNoSuch  = "UnknownOperationException UnknownOperation InvalidAction NotImplemented NotImplementedException"
	codesBusy    = "ThrottlingException Throttling ThrottledException TooManyRequestsException RequestLimitExceeded SlowDown"
	codesFault   = "KMSInternalException InternalFailure InternalServerError InternalException InternalError"
	codesStore   = "CustomKeyStoreInvalidStateException CustomKeyStoreNotFoundException"
	codesCluster = "CloudHsmClusterInUseException CloudHsmClusterInvalidConfigurationException CloudHsmClusterNotActiveException CloudHsmClusterNotFoundException CloudHsmClusterNotRelatedException"
)

// errorTable is what every code means, the particular before the general. Source of the codes: AWS KMS API
// Reference, "Errors" of each operation and "Common Errors". AccessDenied, throttling, validation and
// signature errors are not in the SDK's model of KMS.
func errorTable() []row {
	const (
		caller, kms = ClassCaller, ClassKMS
		again, no   = true, false
		allow       = "allow kms:{op} on this key in the caller's IAM policy (hsmbridge plan prints one) and let the key policy allow it or delegate to IAM"
		account     = "; a key of another account (this one belongs to {account}) takes no imports: use credentials of its own account"
		describe    = "look at the key's state with aws kms describe-key"
		absent      = "there is no such key in {region} and account {account}, or it was made a moment ago"
		whichKey    = "check Region, account and key ID; for a new key wait a few seconds, since KMS is eventually consistent"
		external    = "create a key with origin EXTERNAL and no custom key store"
		quota       = "wait and try again, or have the quota raised (Service Quotas)"
		moment      = "try again in a few seconds"
		proxy       = "the proxy (HTTPS_PROXY, NO_PROXY)"
	)
	return []row{
		// Permission.
		{codesDenied, opGetParametersForImport, 0, caller, no, "the caller may not call kms:{op} on this key, or not with this wrapping algorithm or wrapping key spec", allow + "; check the conditions kms:WrappingAlgorithm and kms:WrappingKeySpec" + account},
		{codesDenied, opImportKeyMaterial, 0, caller, no, "the caller may not call kms:{op} on this key, or not with this expiry", allow + "; check the conditions kms:ExpirationModel and kms:ValidTo" + account},
		{codesDenied, opDeleteImported, 0, caller, no, "the caller may not call kms:{op} on this key", allow + account},
		{codesDenied, opRotateKeyOnDemand, 0, caller, no, "the caller may not call kms:{op} on this key", allow + account},
		{codesDenied, opListKeyRotations, 0, caller, no, "the caller may not call kms:{op} on this key", allow + account},
		{codesDenied, opCreateKey, 0, caller, no, "the caller may not call kms:CreateKey, or not with this key spec, usage or tags", "allow kms:CreateKey in the caller's IAM policy; check the conditions kms:KeySpec, kms:KeyUsage, kms:KeyOrigin and kms:MultiRegion, and kms:TagResource for tags"},
		{codesDenied, opCreateAlias, 0, caller, no, "the caller may not call kms:CreateAlias on the alias and on the key", "allow kms:CreateAlias on both in the caller's IAM policy, and on the key in its key policy"},
		{codesDenied, "", 0, caller, no, "the caller may not call kms:{op} on this key", allow + "; for a key of another account (this one belongs to {account}) both must allow it"},
		{"InvalidGrantTokenException", "", 0, caller, no, "the grant token is not valid", "hsmbridge sends no grant tokens: check what stands between it and KMS"},
		{"DryRunOperationException", "", 0, caller, no, "the request was a dry run and would have been allowed", "hsmbridge makes no dry runs: check what stands between it and KMS"},

		// Who is calling.
		{codesSigned, "", 0, caller, no, "KMS does not accept the signature: the credentials are wrong, deleted or of another partition, or this machine's clock is wrong", "check the credentials and the profile with aws sts get-caller-identity, and that the clock is synchronised"},
		{codesStale, "", 0, caller, no, "the credentials have expired, or this machine's clock is wrong", "renew the session (aws sso login, or the source of the temporary credentials) and check that the clock is synchronised"},
		{"OptInRequired SubscriptionRequiredException", "", 0, caller, no, "the account is not enabled for AWS KMS or for this Region", "enable the Region for the account"},

		// The key.
		{"NotFoundException", opImportKeyMaterial, 0, caller, no, absent, whichKey + "; nothing was imported"},
		{"NotFoundException", opDescribeKey, 0, caller, no, absent, whichKey + "; for an alias, that it exists"},
		{"NotFoundException", "", 0, caller, no, absent, whichKey},
		{"InvalidArnException", "", 0, caller, no, "this is not the key ARN that {op} needs", "write the key ARN, arn:aws:kms:REGION:ACCOUNT:key/KEY-ID"},
		{"WrongRegion", "", 0, caller, no, "the key is not in the Region that is called", "set kms.region to {region}"},
		{codesState, opGetParametersForImport, 0, caller, no, "the state of the key allows no import: it is scheduled for deletion (PendingDeletion), being created or being updated", describe + "; cancel the deletion if the key is still wanted"},
		{codesState, opImportKeyMaterial, 0, caller, no, "the state of the key allows no import: it is scheduled for deletion (PendingDeletion), being updated, or has other key material pending rotation", describe + " and list-key-rotations; cancel the deletion, or rotate or delete the pending key material; nothing was imported"},
		{codesState, opDeleteImported, 0, caller, no, "the state of the key allows no deletion: it holds no key material, or is itself scheduled for deletion", describe + "; if it is PendingImport nothing is left to delete"},
		{codesState, opRotateKeyOnDemand, 0, caller, no, "the key cannot be rotated: no key material waits for rotation, a Region still lacks it, or the key is not enabled", describe + " and list-key-rotations; import the new key material into every Region first"},
		{codesState, "", 0, caller, no, "the state of the key does not allow {op}: PendingImport, Disabled, PendingDeletion or Unavailable, or a recent change is not yet seen everywhere", describe + "; import key material, enable the key or cancel its deletion; after a recent change wait a few seconds"},
		{"DisabledException", "", 0, caller, no, "the key is disabled", "enable it with aws kms enable-key: an import needs no enabled key, a proof does"},
		{"KeyUnavailableException", "", 0, kms, again, "KMS cannot use the key at the moment", moment},
		{"InvalidKeyUsageException", "", 0, caller, no, "the key's usage or key spec does not fit {op} with this algorithm", "check KeyUsage and the algorithms with aws kms describe-key; the usage is fixed when the key is created"},
		{"UnsupportedOperationException", opGetParametersForImport, 0, caller, no, "no key material can be imported into this key in this way: its origin is not EXTERNAL, it is in a custom key store, or KMS here lacks the wrapping algorithm for its key spec", external + ", or choose another wrapping algorithm"},
		{"UnsupportedOperationException", opImportKeyMaterial, 0, caller, no, "no key material can be imported into this key: its origin is not EXTERNAL, or it is in a custom key store", external},
		{"UnsupportedOperationException", opListKeyRotations, 0, caller, no, "keys of this kind have no list of key materials", "nothing to do: RSA, ECC and HMAC keys hold one key material for ever"},
		{"UnsupportedOperationException", "", 0, caller, no, "this key, or KMS here, does not support {op}", "check origin, key spec and custom key store with aws kms describe-key"},
		{codesStore, "", 0, caller, no, "the key belongs to a custom key store that is not connected", "such a key takes no imports: " + external},
		{codesCluster, "", 0, caller, no, "the key belongs to a custom key store, and its CloudHSM cluster has a problem", "such a key takes no imports: " + external},

		// The import.
		{"ExpiredImportTokenException", "", 0, caller, no, "the import token is older than 24 hours", "fetch new import parameters and wrap the key again; nothing was imported"},
		{"InvalidImportTokenException", "", 0, caller, no, "the import token is not for this key, or not as KMS issued it", "fetch new import parameters for exactly this key and wrap it again; nothing was imported"},
		{"InvalidCiphertextException", "", 0, caller, no, "KMS could not unwrap the key material: it was wrapped under another public key or with other hashes in OAEP and MGF1, or it does not fit the key spec", "run hsmbridge probe for the token, and wrap under the public key that came with the import token; nothing was imported"},
		{"IncorrectKeyMaterialException", "", 0, caller, no, "this is not the key material that the KMS key had before", "check that the HSM object is the one that was imported first; a different key needs a new KMS key, or NEW_KEY_MATERIAL if it is symmetric; nothing was imported"},

		// The request.
		{codesInvalid, opGetParametersForImport, 0, caller, no, "KMS does not take this wrapping algorithm or wrapping key spec for this key", "choose another: RSA keys need RSA_AES_KEY_WRAP_*, ECC_NIST_P521 needs more than RSA_2048, RSAES_PKCS1_V1_5 is refused since 10 October 2023"},
		{codesInvalid, opImportKeyMaterial, 0, caller, no, "KMS does not take the request: ValidTo is past or more than 365 days ahead, or ImportType or KeyMaterialId stand where they may not (symmetric keys only, newer servers only)", "check the expiry and what kind of key it is; nothing was imported"},
		{codesInvalid, "", 0, caller, no, "KMS does not take a value in the request", "compare it with the AWS KMS API Reference, {op}"},
		{codesNoSuch, "", 0, caller, no, "this endpoint has no {op}", "use an endpoint that has it: KMS-compatible servers and older partitions lack newer operations"},
		{"InvalidAliasNameException", "", 0, caller, no, "the alias name is not valid", "begin it with alias/ (not alias/aws/) and use letters, digits, /, _ and - only"},
		{"AlreadyExistsException", "", 0, caller, no, "the alias exists already", "use another alias, or delete or update that one"},
		{"TagException", "", 0, caller, no, "a tag is not valid", "use at most 50 tags, and no key that begins with aws:"},
		{"MalformedPolicyDocumentException", "", 0, caller, no, "KMS does not accept the key policy", "check the policy"},
		{"InvalidMarkerException", "", 0, kms, no, "KMS does not know its own page marker any more", "run it again from the start"},

		// Load and faults of KMS.
		{codesBusy, opGetParametersForImport, 0, kms, again, "too many requests: KMS allows about one {op} a second for an account and Region", quota},
		{codesBusy, "", 0, kms, again, "too many requests for this account and Region", quota},
		{"LimitExceededException", opRotateKeyOnDemand, 0, caller, no, "the key was rotated on demand 25 times, and KMS allows no more", "create a new KMS key, import into it and point the alias at it"},
		{"ConflictException", opRotateKeyOnDemand, 0, kms, no, "a rotation of this key is in progress", "wait until aws kms list-key-rotations shows it"},
		{"LimitExceededException", "", 0, caller, no, "a resource quota of the account is used up", "delete what is not needed, or have the quota raised (Service Quotas)"},
		{"ConflictException", "", 0, kms, no, "another change of this key is in progress", "wait until it is done, look at the key, and run it again"},
		{"DependencyTimeoutException", "", 0, kms, again, "KMS waited too long for something that it depends on", moment},
		{codesFault, "", 0, kms, again, "KMS had an internal error", moment + "; if it stays, see the AWS Health Dashboard"},
		{codeUnavailable, "", 0, kms, again, "KMS, or a proxy before it, cannot answer at the moment", moment + "; if it stays, check " + proxy + " and the AWS Health Dashboard"},

		// The way to KMS.
		{codeNoCredentials, "", 0, caller, no, "no AWS credentials could be had", "give this process some: an instance or container role, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or kms.profile (aws sso login renews a session); for a role_arn check its trust policy and external_id"},
		{codeRefused, "", 0, kms, again, "nothing listens at KMS's address", "check kms.endpoint, and that the service there runs"},
		{codeDNS, "", 0, kms, again, "the name of the KMS endpoint cannot be resolved", "check kms.region, kms.endpoint and this machine's name servers"},
		{codeUnreachable, "", 0, kms, again, "KMS's address cannot be reached", "check the route, the firewall and " + proxy},
		{codeTLS, "", 0, kms, no, "no trusted TLS connection to KMS could be made", "check kms.endpoint, this machine's CA certificates (AWS_CA_BUNDLE for a proxy that opens TLS) and its clock"},
		{codeTimeout, "", 0, kms, again, "KMS did not answer in time", "check the way to KMS (firewall, VPC endpoint, proxy) and try again"},
		{codeCut, "", 0, kms, again, "the connection was cut before the answer was complete", "check the way to KMS and try again"},
		{codeNotKMS, "", 0, kms, no, "this is not an answer of KMS: a proxy, a login page or a wrong endpoint gave it", "check kms.endpoint and " + proxy},
		{codeHeldBack, "", 0, kms, no, "the request was held back to keep KMS's request quota, and could not be sent", "try again later; nothing was sent"},
		{codeCanceled, "", 0, caller, no, "the call was given up: the process was told to stop, or the time for it was over", "run it again"},

		// The configuration.
		{"NoRegion", "", 0, caller, no, "no AWS Region is configured", "set kms.region, AWS_REGION or the profile's region"},
		{"InvalidRegion", "", 0, caller, no, "this is not the name of an AWS Region", "write it like eu-central-1"},
		{"ProfileNotFound", "", 0, caller, no, "the AWS configuration has no such profile", "check kms.profile against aws configure list-profiles, and HOME and AWS_CONFIG_FILE of this process"},
		{"InsecureEndpoint", "", 0, caller, no, "this endpoint is refused: the wrapping public key must come from KMS over TLS, since AWS signs nothing over it", "use an https endpoint; http is for loopback addresses only, such as http://127.0.0.1:4599; AWS_ENDPOINT_URL and endpoint_url of the profile count too"},
		{"InvalidConfiguration", "", 0, caller, no, "the AWS configuration cannot be used", "check the AWS configuration files and the AWS_ variables of this process"},

		// Anything else.
		{"", "", http.StatusInternalServerError, kms, again, "KMS failed with a code that is not in the table", moment + "; if it stays, report the code"},
		{"", "", http.StatusBadRequest, caller, no, "KMS refused with a code that is not in the table", "look it up in the AWS KMS API Reference, {op}, and report it"},
		{"", "", 0, kms, no, "the call failed in a way that is not in the table", "report this"},
	}
}
