package quirks

// Family is a row of the table: a family of HSMs, how it is recognised, and how it differs from the standard.
type Family struct {
	Name    string   // in the configuration and the name of its sample file: "luna"
	Title   string   // for people: "Thales Luna"
	Match   []Match  // any of them
	Run     string   // what of it was run, with the version; empty: nothing, everything comes from the sources
	Sources []Source // what the row says, and the sample file says more of, is written there
	Quirks  Quirks
}

// Source is a public document, of the vendor unless it says whose it is.
type Source struct {
	Document string // title, and the section
	URL      string // empty where there is only the document
}

// Families is the table. The order matters: the first row that fits is taken, so that what runs another vendor's hardware (AWS CloudHSM,
// on Marvell's) stands before it.
//
// Words of a token that was not run are from its vendor's documents and tools as far as these are public, and not each has a source here.
// Where they turn out different, the name of the module's file still finds the row, and quirks.family in the configuration names it.
func Families() []Family {
	return append(hardware(), software()...)
}

// hardware is the rows of the devices, none of which was run, and of what a cloud runs for others.
func hardware() []Family {
	return []Family{
		{
			Name: "luna", Title: "Thales Luna",
			Match: []Match{{Manufacturer: "safenet"}, {Model: "luna"}, {Library: "chrystoki"}, {Module: "libcryptoki2"}},
			Sources: []Source{
				{"Luna HSM 7 product documentation, SDK Reference, CKM_AES_KW", "https://www.thalesdocs.com/gphsm/luna/7/docs/network/Content/sdk/mechanisms/CKM_AES_KW.htm"},
				{"Luna HSM 7 product documentation, SDK Reference, CKM_AES_KWP", "https://www.thalesdocs.com/gphsm/luna/7/docs/network/Content/sdk/mechanisms/CKM_AES_KWP.htm"},
				{"ThalesGroup, luna-samples: the mechanisms' numbers", "https://github.com/ThalesGroup/luna-samples"},
				{"Luna HSM 7 product documentation, \"Configuring the Partition for Cloning or Export of Private/Secret Keys\": policy 1", "https://www.thalesdocs.com/gphsm/luna/7/docs/network/Content/admin_partition/policies/cloning_key_export.htm"},
				{"Luna HSM 7.7.0 product documentation, \"Partition Capabilities and Policies\"", "https://thalesdocs.com/gphsm/luna/7.7.0/docs/network/Content/admin_partition/policies/partition_capabilities_and_policies.htm"},
			},
			Quirks: Quirks{
				AESKeyWrap: []Mechanism{
					{Name: "CKM_AES_KWP", Type: 0x80000171},          // SP 800-38F KWP, which is RFC 5649
					{Name: "CKM_AES_KW", Type: 0x80000170, IV: true}, // SP 800-38F KW, symmetric keys only
				},
				Network: true,
			},
		},
		{
			Name: "nshield", Title: "Entrust nShield",
			Match: []Match{{Manufacturer: "ncipher"}, {Manufacturer: "entrust"}, {LibraryManufacturer: "ncipher"}, {Module: "libcknfast"}},
			Sources: []Source{
				{"nShield Security World v13.6.3, PKCS #11, \"nShield PKCS #11 library environment variables\"", "https://nshielddocs.entrust.com/security-world-docs/v13.6.3/api-pkcs11/env-variables.html"},
				{"nShield Security World v12.80, PKCS #11, \"PKCS #11 security assurance mechanism\"", "https://nshielddocs.entrust.com/security-world-docs/v12.80/api-generic/pkcs11.html"},
				{"nShield Security World v13.6.3, PKCS #11, \"PKCS#11 with load sharing mode\"", "https://nshielddocs.entrust.com/security-world-docs/v13.6.3/api-pkcs11/load-sharing-mode.html"},
				{"nShield Security World v13.6.3, PKCS #11, \"Mechanisms\"", "https://nshielddocs.entrust.com/security-world-docs/v13.6.3/api-pkcs11/mechanisms.html"},
			},
			Quirks: Quirks{Network: true}, // by hardserver: a Unix socket for a card in this machine, TCP for nShield Connect
		},
		{
			Name: "utimaco", Title: "Utimaco CryptoServer and u.trust",
			Match: []Match{{Manufacturer: "utimaco"}, {LibraryManufacturer: "utimaco"}, {Module: "libcs_pkcs11"}, {Module: "libcs2_pkcs11"}},
			Sources: []Source{
				{"Utimaco gives its guides to customers only. A public copy of one: CryptoServer PKCS#11 R2 Developer Guide, document 2012-0007, chapters 3 and 4", "https://crypto-hsm.com/Utimaco_PKCS11_ENG_Guide"},
				{"OpenBao documentation, \"Utimaco HSMs\"", "https://openbao.org/docs/guides/unseal/pkcs11/utimaco"},
				{"Keyfactor, EJBCA documentation, \"Utimaco CryptoServer\"", "https://docs.keyfactor.com/ejbca/latest/utimaco-cryptoserver"},
			},
			Quirks: Quirks{Network: true},
		},
		{
			Name: "cloudhsm", Title: "AWS CloudHSM (Client SDK 5)",
			Match: []Match{
				{Library: "cloudhsm"},
				{LibraryManufacturer: "amazon"},
				{Module: "libcloudhsm_pkcs11", Manufacturer: "cavium"},
				{Module: "libcloudhsm_pkcs11", Manufacturer: "marvell"},
				{Module: "libcloudhsm_pkcs11"},
			},
			Sources: []Source{
				{"AWS CloudHSM User Guide, \"Supported mechanisms for the PKCS #11 library for AWS CloudHSM Client SDK 5\"", "https://docs.aws.amazon.com/cloudhsm/latest/userguide/pkcs11-mechanisms.html"},
				{"AWS CloudHSM User Guide, \"Authenticate to the PKCS #11 library\"", "https://docs.aws.amazon.com/cloudhsm/latest/userguide/pkcs11-pin.html"},
				{"AWS CloudHSM User Guide, \"Known issues for the PKCS #11 library\", \"Read Only Session is not supported in SDK 5\"", "https://docs.aws.amazon.com/cloudhsm/latest/userguide/ki-pkcs11-sdk.html"},
				{"AWS, aws-cloudhsm-pkcs11-examples: the mechanisms' numbers", "https://github.com/aws-samples/aws-cloudhsm-pkcs11-examples"},
			},
			Quirks: Quirks{
				PIN: PINUserPassword, ReadWriteNeeded: true, Network: true,
				AESKeyWrap: []Mechanism{
					{Name: "CKM_CLOUDHSM_AES_KEY_WRAP_ZERO_PAD", Type: 0x8000216F},         // RFC 5649
					{Name: "CKM_CLOUDHSM_AES_KEY_WRAP_PKCS5_PAD", Type: 0x8000210A},        // RFC 3394 after PKCS #5 padding: the probe says so
					{Name: "CKM_CLOUDHSM_AES_KEY_WRAP_NO_PAD", Type: 0x80002109, IV: true}, // RFC 3394
				},
			},
		},
		{
			Name: "yubihsm2", Title: "YubiHSM 2",
			Match: []Match{{Manufacturer: "yubico", Model: "yubihsm"}, {Library: "yubihsm"}, {Module: "yubihsm_pkcs11"}},
			Sources: []Source{
				{"YubiHSM 2 User Guide, \"PKCS#11 with YubiHSM 2 Reference\", \"Configuration\" and \"Logging In\"", "https://docs.yubico.com/software/yubihsm-2/component-reference/hsm2-ref-pkcs11.html"},
				{"YubiHSM 2 User Guide, \"Core Concepts\": capabilities, domains, objects", "https://docs.yubico.com/hardware/yubihsm-2/hsm-2-user-guide/hsm2-core-concepts.html"},
				{"YubiHSM 2 User Guide, \"Concept: Session\"", "https://docs.yubico.com/software/yubihsm-2/concepts/hsm2-concept-session.html"},
				{"Yubico, yubihsm-shell: the sources of the module, pkcs11/yubihsm_pkcs11.c", "https://github.com/Yubico/yubihsm-shell"},
			},
			Quirks: Quirks{
				PIN: PINHex4Password, TokenPublicKey: true, MaxSessions: 16, NoLengthQuery: true, // sessions said to be infinite; a length query answers an estimate
				Network: true, // HTTP to yubihsm-connector
			},
		},
		{
			Name: "marvell", Title: "Marvell LiquidSecurity",
			Match: []Match{{Manufacturer: "cavium"}, {Manufacturer: "marvell"}, {LibraryManufacturer: "cavium"}, {LibraryManufacturer: "marvell"}, {Module: "liquidsec_pkcs11"}, {Module: "libazcloudhsm_pkcs11"}},
			Sources: []Source{
				{"Marvell gives its documentation to customers only. Microsoft, of Azure Cloud HSM, which is LiquidSecurity: \"Authentication in Azure Cloud HSM\"", "https://learn.microsoft.com/en-us/azure/cloud-hsm/authentication"},
				{"Microsoft, MicrosoftAzureCloudHSM, FAQ.md", "https://github.com/microsoft/MicrosoftAzureCloudHSM"},
				{"py-hsm, a public tool, examples/README.md: the module's name, the PIN's form", "https://github.com/bentonstark/py-hsm"},
			},
			Quirks: Quirks{PIN: PINUserPassword, Network: true},
		},
		{
			Name: "futurex", Title: "Futurex",
			Match: []Match{{Manufacturer: "futurex"}, {LibraryManufacturer: "futurex"}, {Module: "libfxpkcs11"}},
			Sources: []Source{
				{"Futurex gives the reference of its library to customers only. Public is the guide Generic Futurex PKCS #11, \"Load major keys\"", "https://docs.futurex.com/hsm-integration-guides/hu3Y-load-major-keys"},
				{"Futurex, \"Use the Guardian Series 3 to configure HSMs for PKCS #11 integrations\"", "https://docs.futurex.com/Integrations/HSM/Generic/Guardian_Series_3_Configure_HSMs_for_PKCS_11_Integrations/Use_the_Guardian_Series_3_to_configure_HSMs_for_PKCS_11_integrations"},
				{"R3, Corda Enterprise documentation, \"HSM support for legal identity keys\": the module's name, FXPKCS11_CFG", ""},
			},
			Quirks: Quirks{Network: true},
		},
		{
			Name: "fortanix", Title: "Fortanix Data Security Manager",
			Match: []Match{{Manufacturer: "fortanix"}, {LibraryManufacturer: "fortanix"}, {Module: "fortanix_pkcs11"}},
			Sources: []Source{
				{"Fortanix DSM, \"Clients: PKCS#11 Library\", \"Wrap Key\"", "https://support.fortanix.com/hc/en-us/articles/360016160451-Clients-PKCS-11-Library"},
				{"Fortanix, \"DSM Accelerator PKCS#11 Developer Guide\", section 3.0 \"Configuration File\"", "https://support.fortanix.com/v1/docs/dsm-accelerator-pkcs11-developer-guide"},
				{"Fortanix, terraform-provider-dsm, docs/resources/sobject.md: key_ops", "https://github.com/fortanix/terraform-provider-dsm"},
				{"Infisical documentation, \"Fortanix DSM\": the module, the login, the label", "https://infisical.com/docs/documentation/platform/pki/settings/hsm-connectors-fortanix-dsm.md"},
			},
			Quirks: Quirks{Network: true},
		},
		{
			Name: "securosys", Title: "Securosys Primus",
			Match: []Match{{Manufacturer: "securosys"}, {LibraryManufacturer: "securosys"}, {Module: "libprimusp11"}},
			Sources: []Source{
				{"Primus HSM PKCS#11 Provider, \"Overview\"", "https://docs.securosys.com/pkcs/overview"},
				{"Primus HSM PKCS#11 Provider, \"Configuration\"", "https://docs.securosys.com/pkcs/Installation/pkcs11_provider_configuration"},
				{"Primus HSM PKCS#11 Provider, \"Primus HSM Configuration\"", "https://docs.securosys.com/pkcs/Installation/primus_hsm_settings"},
			},
			Quirks: Quirks{Network: true},
		},
		{
			Name: "ibm-ep11", Title: "IBM Crypto Express, EP11 (openCryptoki)",
			Match: []Match{{Manufacturer: "ibm", Model: "ep11"}},
			Sources: []Source{
				{"IBM, openCryptoki on Linux, \"Usage notes for the EP11 host library functions\"", "https://www.ibm.com/docs/en/linuxonibm/lxoc/lxoc_tok_ep11_restrict.html"},
				{"IBM, openCryptoki on Linux, \"PKCS #11 mechanisms supported by the EP11 token\"", "https://www.ibm.com/docs/en/linuxonibm/lxoc/lxoc_tok_ep11_mech.html"},
			},
			Quirks: Quirks{NoLengthQuery: true}, // a precaution, from no document: the query might be a whole operation of the card
		},
		{
			Name: "ibm-cca", Title: "IBM Crypto Express, CCA (openCryptoki)",
			Match:   []Match{{Manufacturer: "ibm", Model: "cca"}},
			Sources: []Source{{"IBM, openCryptoki on Linux, \"Wrapping CCA keys\"", "https://www.ibm.com/docs/en/linuxonibm/lxoc/lxoc_tok_cca_wrapping.html"}},
			Quirks:  Quirks{NoLengthQuery: true},
		},
		{
			Name: "nethsm", Title: "Nitrokey NetHSM",
			Match: []Match{{Model: "nethsm"}, {Library: "nethsm"}, {Manufacturer: "nitrokey", Module: "nethsm"}, {Module: "libnethsm_pkcs11"}},
			Sources: []Source{
				{"Nitrokey documentation, NetHSM, \"PKCS#11 Setup\"", "https://docs.nitrokey.com/nethsm/pkcs11-setup.html"},
				{"Nitrokey, nethsm-pkcs11, features.md, \"Generation\": C_WrapKey", "https://github.com/Nitrokey/nethsm-pkcs11"},
			},
			Quirks: Quirks{CannotWrap: "its module has no C_WrapKey", Network: true},
		},
		{
			Name: "smartcard-hsm", Title: "SmartCard-HSM and Nitrokey HSM 2",
			Match: []Match{{Manufacturer: "cardcontact"}, {Model: "smartcard-hsm"}, {Module: "libsc-hsm-pkcs11"}},
			Sources: []Source{
				{"CardContact, sc-hsm-embedded, pull request 50: C_WrapKey of its module was a stub (CKR_FUNCTION_NOT_SUPPORTED)", "https://github.com/CardContact/sc-hsm-embedded/pull/50"},
				{"CardContact, \"Desaster Recovery for your SmartCard-HSM\": the device key encryption key", "https://www.smartcard-hsm.com/2014/09/25/Desaster_Recovery_for_your_SmartCard-HSM.html"},
			},
			Quirks: Quirks{CannotWrap: "keys leave it only under its own device key encryption key, never by C_WrapKey"},
		},
		{
			Name: "kmsp11", Title: "Google Cloud KMS (kmsp11)",
			Match: []Match{{Library: "cloud kms"}, {Module: "libkmsp11"}},
			Sources: []Source{
				{"Google, PKCS #11 Library for Cloud KMS User Guide, \"Functions\"", "https://github.com/GoogleCloudPlatform/kms-integrations/blob/master/kmsp11/docs/user_guide.md"},
				{"Google, Cloud KMS reference, \"Resource: CryptoKeyVersion\"", "https://docs.cloud.google.com/kms/docs/reference/rest/v1/projects.locations.keyRings.cryptoKeys.cryptoKeyVersions"},
			},
			Quirks: Quirks{CannotWrap: "Cloud KMS gives no key out, and its module has no C_WrapKey", Network: true},
		},
	}
}

// software is the rows of tokens in software, which the tests run.
func software() []Family {
	return []Family{
		{
			Name: "softhsm2", Title: "SoftHSM2",
			Match:   []Match{{Manufacturer: "softhsm"}, {Module: "libsofthsm2"}},
			Run:     "SoftHSM 2.6.1 on Debian 12: the contract suite and the end-to-end tests",
			Sources: []Source{{"measured; docs/tokens.md", ""}},
		},
		{
			Name: "nss", Title: "NSS softokn",
			Match:   []Match{{Manufacturer: "mozilla"}, {Model: "nss 3"}, {Module: "libsoftokn3"}},
			Run:     "NSS 3.87 on Debian 12: the contract suite and the end-to-end tests",
			Sources: []Source{{"measured; docs/tokens.md", ""}},
			Quirks:  Quirks{NoLengthQuery: true}, // CKM_AES_KEY_WRAP_KWP answers too little
		},
		{
			Name: "opencryptoki", Title: "openCryptoki soft token",
			Match:   []Match{{Manufacturer: "ibm", Model: "soft"}, {Module: "libopencryptoki"}, {Module: "pkcs11_api"}},
			Run:     "openCryptoki 3.8.1 on Debian 12: the contract suite and the end-to-end tests",
			Sources: []Source{{"measured; docs/tokens.md", ""}},
		},
		{
			Name: "tpm2", Title: "TPM 2.0 (tpm2-pkcs11)",
			Match:   []Match{{Library: "tpm2"}, {Module: "libtpm2_pkcs11"}},
			Sources: []Source{{"measured on tpm2-pkcs11 1.9.0 with swtpm: it advertises CKM_RSA_PKCS_OAEP with CKF_WRAP, and C_WrapKey answers CKR_FUNCTION_NOT_SUPPORTED", ""}},
			Quirks:  Quirks{ReadWriteNeeded: true, CannotWrap: "its module has no C_WrapKey"},
		},
	}
}
