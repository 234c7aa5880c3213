// Package faults tests what hsmbridge does when a token or its module fails: every operation of a token times every fault, with a token of SoftHSM2
// behind the module of test/shim. The outcomes are written to docs/faults.md.
package faults
