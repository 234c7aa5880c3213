// Package tree holds what is true of the whole source tree: who can have the HSM wrap a key, and that what THREATS.md says is shown by a
// test.
package tree
