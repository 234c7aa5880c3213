package approval

// Blob is the encoding of a signature without its armor.
func (s Signature) Blob() []byte { return s.blob() }
