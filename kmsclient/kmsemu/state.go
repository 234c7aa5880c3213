package kmsemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	if err := in.check(); err != nil {
		return fmt.Errorf("the state file %s is damaged: %w; remove it to begin anew", s.opt.StateFile, err)
	}
	for _, p := range s.params {
		p.Private.Precompute()
	}
	return nil
}

// check holds that nothing is missing without which the emulator would fail later.
func (s saved) check() error {
	if s.Keys == nil || s.Aliases == nil || s.Params == nil {
		return errors.New("keys, aliases or parameters are null")
	}
	for id, k := range s.Keys {
		if k == nil {
			return fmt.Errorf("the key %q is null", id)
		}
		if slices.Contains(k.Materials, nil) {
			return fmt.Errorf("a material of the key %q is null", id)
		}
	}
	for id, p := range s.Params {
		if p == nil || p.Private == nil || p.Private.N == nil {
			return fmt.Errorf("the parameters %q have no private key", id)
		}
		if err := p.Private.Validate(); err != nil {
			return fmt.Errorf("the parameters %q: %w", id, err)
		}
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
