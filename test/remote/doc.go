// Package remote holds tests of tokens whose module lives in a process of its own: real processes, a real SoftHSM2 behind the module that
// injects faults.
package remote
