package hsm

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/miekg/pkcs11"
)

// module is one loaded and initialised PKCS#11 library. PKCS#11 has one state per process and library, so a
// path is loaded once however many tokens of it are open.
type module struct {
	path        string
	parameters  string
	environment map[string]string
	ctx         *pkcs11.Ctx
	lib         *library
	users       int
	refused     map[string]error // failed logins by token: they are not tried again in this process
	login       sync.Mutex       // C_Login is called serially
}

// modules is the process's loaded libraries. It is global because PKCS#11's state is.
//
//nolint:gochecknoglobals // see above
var modules = struct {
	sync.Mutex
	byPath  map[string]*module
	refused map[string]map[string]error
}{byPath: map[string]*module{}, refused: map[string]map[string]error{}}

// acquire loads and initialises the module of the configuration, or shares it.
func acquire(c Config) (*module, error) {
	path, err := filepath.EvalSymlinks(c.Module)
	if err != nil {
		return nil, moduleError(c, "the PKCS#11 module cannot be found", err)
	}
	modules.Lock()
	defer modules.Unlock()
	if m := modules.byPath[path]; m != nil {
		if m.parameters != c.Parameters || !maps.Equal(m.environment, c.Environment) {
			return nil, moduleError(c, "the module is in use in this process with another environment or other parameters", errModuleShared)
		}
		m.users++
		return m, nil
	}
	m := &module{path: path, parameters: c.Parameters, environment: maps.Clone(c.Environment)}
	if err := m.load(c); err != nil {
		return nil, err
	}
	if modules.refused[path] == nil {
		modules.refused[path] = map[string]error{}
	}
	m.refused = modules.refused[path]
	m.users = 1
	modules.byPath[path] = m
	return m, nil
}

var errModuleShared = errors.New("a PKCS#11 module is initialised once per process")

func (m *module) load(c Config) error {
	politeMonitor()
	for name, value := range c.Environment {
		if err := os.Setenv(name, value); err != nil {
			return moduleError(c, "its environment cannot be set", err)
		}
	}
	var err error
	if m.lib, err = openLibrary(m.path); err != nil {
		return moduleError(c, "the file is not a usable PKCS#11 module", err)
	}
	if m.ctx = pkcs11.New(m.path); m.ctx == nil {
		m.lib.close()
		return moduleError(c, "the file is not a usable PKCS#11 module", errors.New("it cannot be loaded"))
	}
	if err := m.lib.share(m.ctx); err != nil {
		m.ctx.Destroy()
		m.lib.close()
		return moduleError(c, "the file is not a usable PKCS#11 module", err)
	}
	var options []pkcs11.InitializeOption
	if c.Parameters != "" {
		options = append(options, pkcs11.InitializeWithReserved(m.lib.keep(c.Parameters)))
	}
	if err := m.ctx.Initialize(options...); err != nil && !isCode(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		m.ctx.Destroy()
		m.lib.close()
		return fault("C_Initialize", err, about{what: c.Module})
	}
	return nil
}

// release gives the module back; the last user finalises it.
func (m *module) release() error {
	modules.Lock()
	defer modules.Unlock()
	m.users--
	if m.users > 0 {
		return nil
	}
	delete(modules.byPath, m.path)
	err := m.ctx.Finalize()
	m.ctx.Destroy()
	m.lib.close()
	if err != nil {
		return fault("C_Finalize", err, about{what: m.path})
	}
	return nil
}

func moduleError(c Config, cause string, err error) error {
	return &Error{
		Op: "load " + c.Module, ErrClass: ClassCaller, Cause: cause + ": " + err.Error(),
		Fix: fmt.Sprintf("check tokens[].module of %q: it has to be the absolute path of the HSM vendor's PKCS#11 library for this architecture", c.Name), Err: err,
	}
}
