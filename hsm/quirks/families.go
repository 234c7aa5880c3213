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

// Source is a public document.
type Source struct {
	Document string // title, and the section
	URL      string // empty where there is only the document
}

// Families is the table. The order matters: the first row that fits is taken, so that what runs another vendor's hardware (AWS CloudHSM,
// on Marvell's) stands before it.
//
// Words of a token that was not run are from its vendor's documents and tools. Where they turn out different, the name of the module's
// file still finds the row, and quirks.family in the configuration names it.
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
				{"Luna HSM 7 product documentation, Partition Capabilities and Policies, policy 1 \"Allow private key wrapping\"", ""},
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
			},
			Quirks: Quirks{Network: true}, // by hardserver: a Unix socket for a card in this machine, TCP for nShield Connect
		},
		{
			Name: "utimaco", Title: "Utimaco CryptoServer and u.trust",
			Match:   []Match{{Manufacturer: "utimaco"}, {LibraryManufacturer: "utimaco"}, {Module: "libcs_pkcs11"}, {Module: "libcs2_pkcs11"}},
			Sources: []Source{{"CryptoServer PKCS#11 Developer Guide, document 2012-0007, chapters 3 \"Requirements\" and 4 \"Configuration\"", ""}},
			Quirks:  Quirks{Network: true},
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
				{"YubiHSM 2 User Guide, \"Core Concepts\": sessions, capabilities, wrap keys", "https://docs.yubico.com/hardware/yubihsm-2/hsm-2-user-guide/hsm2-core-concepts.html"},
			},
			Quirks: Quirks{
				PIN: PINHex4Password, TokenPublicKey: true, MaxSessions: 16, NoLengthQuery: true, // sessions said to be infinite; a length query answers 3136
				Network: true, // HTTP to yubihsm-connector
			},
		},
		{
			Name: "marvell", Title: "Marvell LiquidSecurity",
			Match:   []Match{{Manufacturer: "cavium"}, {Manufacturer: "marvell"}, {LibraryManufacturer: "cavium"}, {LibraryManufacturer: "marvell"}, {Module: "liquidsec_pkcs11"}},
			Sources: []Source{{"LiquidSecurity HSM documentation (for customers); public tools for it name libliquidsec_pkcs11.so and a PIN of the form username:password", ""}},
			Quirks:  Quirks{PIN: PINUserPassword, Network: true},
		},
		{
			Name: "futurex", Title: "Futurex",
			Match:   []Match{{Manufacturer: "futurex"}, {LibraryManufacturer: "futurex"}, {Module: "libfxpkcs11"}},
			Sources: []Source{{"Futurex PKCS #11 (FXPKCS11) integration guides: fxpkcs11.cfg, and FXPKCS11_CFG for another place of it", ""}},
			Quirks:  Quirks{Network: true},
		},
		{
			Name: "fortanix", Title: "Fortanix Data Security Manager",
			Match:   []Match{{Manufacturer: "fortanix"}, {LibraryManufacturer: "fortanix"}, {Module: "fortanix_pkcs11"}},
			Sources: []Source{{"Fortanix DSM, \"Clients: PKCS#11 Library\", \"Wrap Key\"", "https://support.fortanix.com/hc/en-us/articles/360016160451-Clients-PKCS-11-Library"}},
			Quirks:  Quirks{Network: true},
		},
		{
			Name: "securosys", Title: "Securosys Primus",
			Match:   []Match{{Manufacturer: "securosys"}, {LibraryManufacturer: "securosys"}, {Module: "libprimusp11"}},
			Sources: []Source{{"Primus HSM PKCS#11 Provider, \"Overview\" and \"Configuration\"", "https://docs.securosys.com/pkcs/Installation/pkcs11_provider_configuration"}},
			Quirks:  Quirks{Network: true},
		},
		{
			Name: "ibm-ep11", Title: "IBM Crypto Express, EP11 (openCryptoki)",
			Match:   []Match{{Manufacturer: "ibm", Model: "ep11"}},
			Sources: []Source{{"IBM, openCryptoki on Linux, \"Usage notes for the EP11 host library functions\"", "https://www.ibm.com/docs/en/linux-on-systems?topic=token-usage-notes-ep11-host-library-functions"}},
			Quirks:  Quirks{NoLengthQuery: true}, // a length query is a whole operation of the card
		},
		{
			Name: "ibm-cca", Title: "IBM Crypto Express, CCA (openCryptoki)",
			Match:   []Match{{Manufacturer: "ibm", Model: "cca"}},
			Sources: []Source{{"IBM, openCryptoki on Linux, \"CCA token\"; CKM_RSA_AES_KEY_WRAP from CCA 8.2 on", "https://www.ibm.com/docs/en/linux-on-systems?topic=token-usage-notes-ep11-host-library-functions"}},
			Quirks:  Quirks{NoLengthQuery: true},
		},
		{
			Name: "nethsm", Title: "Nitrokey NetHSM",
			Match:   []Match{{Model: "nethsm"}, {Library: "nethsm"}, {Manufacturer: "nitrokey", Module: "nethsm"}, {Module: "libnethsm_pkcs11"}},
			Sources: []Source{{"Nitrokey documentation, NetHSM, \"PKCS#11 Setup\"", "https://docs.nitrokey.com/nethsm/pkcs11-setup.html"}},
			Quirks:  Quirks{CannotWrap: "its module has no C_WrapKey", Network: true},
		},
		{
			Name: "smartcard-hsm", Title: "SmartCard-HSM and Nitrokey HSM 2",
			Match: []Match{{Manufacturer: "cardcontact"}, {Model: "smartcard-hsm"}, {Module: "libsc-hsm-pkcs11"}},
			Sources: []Source{
				{"CardContact sc-hsm-embedded: C_WrapKey of its module answers CKR_FUNCTION_NOT_SUPPORTED", "https://github.com/CardContact/sc-hsm-embedded/pull/50"},
			},
			Quirks: Quirks{CannotWrap: "keys leave it only under its own device key encryption key, never by C_WrapKey"},
		},
		{
			Name: "kmsp11", Title: "Google Cloud KMS (kmsp11)",
			Match:   []Match{{Library: "cloud kms"}, {Module: "libkmsp11"}},
			Sources: []Source{{"Google Cloud KMS, PKCS #11 library user guide, \"PKCS #11 function support\"", "https://github.com/GoogleCloudPlatform/kms-integrations/blob/master/kmsp11/docs/user_guide.md"}},
			Quirks:  Quirks{CannotWrap: "Cloud KMS gives no key out, and its module has no C_WrapKey", Network: true},
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
