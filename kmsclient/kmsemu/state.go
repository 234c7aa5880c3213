package kmsemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// saved is the state file.
type saved struct {
	Warning string                 `json:"warning"`
	Keys    map[string]*key        `json:"keys"`
	Aliases map[string]string      `json:"aliases"`
	Params  map[string]*parameters `json:"parameters"`
}

const warning = "state of the KMS emulator: it holds the key material of tests in the clear"

func (s *Server) load() error {
	if s.opt.StateFile == "" {
		return nil
	}
	b, err := os.ReadFile(s.opt.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	in := saved{Keys: s.keys, Aliases: s.aliases, Params: s.params}
	if err := json.Unmarshal(b, &in); err != nil {
		return fmt.Errorf("read the state file %s: %w", s.opt.StateFile, err)
	}
	for _, p := range s.params {
		p.Private.Precompute()
	}
	return nil
}

// save writes the state file anew and renames it into place.
func (s *Server) save() error {
	if s.opt.StateFile == "" {
		return nil
	}
	b, err := json.MarshalIndent(saved{warning, s.keys, s.aliases, s.params}, "", " ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(s.opt.StateFile), ".kms-emulator-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), s.opt.StateFile)
	}
	return err
}
